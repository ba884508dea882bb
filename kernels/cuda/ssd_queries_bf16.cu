// The forward walk of the gradients: of queries and step sizes (kernels/cuda/ssd_backward_bf16.cuh); and the
// op.
#include "kernels/cuda/ssd_backward_bf16.cuh"
#include "kernels/elementwise.h"

namespace transmamba::cuda {
namespace ssd {
namespace {

constexpr float kRounding = 1.f / 256;  // of bfloat16

template <int N, int P>
struct Shared {
  using Q = Tile<kTokens, N>;
  using V = Tile<kTokens, P>;
  using M = Tile<kTokens, kTokens>;
  static constexpr int kWarps = N / 16;
  struct Sums {
    float u[kWarps][kTokens];  // exp(cum_t) q_t . S dy_t, of each warp's columns
  };
  static constexpr int kTiles = 2 * Q::kBytes + 2 * V::kBytes + M::kBytes;
  static constexpr std::size_t kBytes = kTiles + 2 * sizeof(Steps) + sizeof(Sums);
  char* base;
  __device__ bf16* at(int offset) const { return reinterpret_cast<bf16*>(base + offset); }
  __device__ Q q() const { return {at(0)}; }
  __device__ Q k() const { return {at(Q::kBytes)}; }
  __device__ V v() const { return {at(2 * Q::kBytes)}; }
  __device__ V dy() const { return {at(2 * Q::kBytes + V::kBytes)}; }
  __device__ M r() const { return {at(kTiles - M::kBytes)}; }
  __device__ Steps& steps(int i) const { return reinterpret_cast<Steps*>(base + kTiles)[i % 2]; }
  __device__ Sums& sums() const { return *reinterpret_cast<Sums*>(base + kTiles + 2 * sizeof(Steps)); }
};

/// A block a piece. A warp has 16 columns of q and k, and those of the state: 16 rows of S (n, p).
template <int N, int P>
__global__ void __launch_bounds__(N * 2) queries(const __grid_constant__ BackwardArguments a) {
  extern __shared__ __align__(16) char shared[];
  const Shared<N, P> s{shared};
  constexpr int kThreadsOf = N * 2;
  constexpr int kWarps = N / 16;
  const std::int64_t head = blockIdx.x / a.cut.pieces, b = head / a.cut.h, h = head % a.cut.h;
  const int piece = static_cast<int>(blockIdx.x % a.cut.pieces), warp = static_cast<int>(threadIdx.x) / kWarp;
  const int g = static_cast<int>(threadIdx.x) % kWarp / 4, c = static_cast<int>(threadIdx.x) % 4 * 2;
  const int column = 16 * warp;
  const std::int64_t begin = static_cast<std::int64_t>(piece) * a.cut.per_piece;
  const int count = static_cast<int>(min(a.cut.chunks, begin + a.cut.per_piece) - begin);
  const float natural_rate = -expf(a.a_log[h]), rate = natural_rate * kLog2e;

  const auto start = [&](int i) {
    if (i < count) {
      const std::int64_t first = (begin + i) * kTokens, left = a.cut.t - first;
      s.q().template start_copy<kThreadsOf>(a.q.row(b, first, h), a.q.token, left);
      s.k().template start_copy<kThreadsOf>(a.k.row(b, first, h), a.k.token, left);
      s.v().template start_copy<kThreadsOf>(a.v.row(b, first, h), a.v.token, left);
      s.dy().template start_copy<kThreadsOf>(a.dy.row(b, first, h), a.dy.token, left);
    }
    commit_copies();
  };
  StepReader reader(a.dt, b, h, a.cut.t);
  if (warp == 0) reader.fetch(begin);
  start(0);

  Slice<P> state;
  const float* const entering = a.entering.of(a.entering.state, head, piece, N * P);
  state.each([&](int row, int p, float& value) { value = entering[(column + row) * P + p]; });
  // <H, S> at the piece's start, which then passes from chunk to chunk in the last warp.
  float crossing = 0;
  const float* const gradient = a.between.gradient + (head * a.cut.pieces + piece) * N * P;
  state.each([&](int row, int p, float& value) { crossing += value * gradient[(column + row) * P + p]; });
  crossing = block_reduce<Plus>(crossing);

  float drate = 0;
  for (int i = 0; i < count; ++i) {
    const std::int64_t chunk = begin + i, first = chunk * kTokens, left = a.cut.t - first;
    Steps& now = s.steps(i);
    if (warp == 0) {
      reader.put(now, rate);
      if (i + 1 < count) reader.fetch(chunk + 1);
    }
    wait_copies<0>();
    __syncthreads();
    for (int block = warp; block < kTriangle; block += kWarps) {
      const int bt = triangle_row(block), bs = block - bt * (bt + 1) / 2;
      float product[2][4] = {};
      token_products<P>(product, s.dy(), 16 * bt, s.v(), 16 * bs);
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        const int from = 16 * bs + 8 * x + c;
        const float2 cum = *reinterpret_cast<const float2*>(now.cum + from),
                     dt = *reinterpret_cast<const float2*>(now.dt + from);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int to = 16 * bt + g + 8 * half;
          const float at = now.cum[to];
          s.r().set(to, from, from <= to ? product[x][2 * half] * exp2f(at - cum.x) * dt.x : 0.f,
                    from + 1 <= to ? product[x][2 * half + 1] * exp2f(at - cum.y) * dt.y : 0.f);
        }
      }
    }
    __syncthreads();

    {
      Columns dq = {};
      tokens_times<P / 16>(dq, s.dy(), [&](int step, std::uint32_t(&right)[4]) {
        right[0] = state.b0(step, 0), right[1] = state.b1(step, 0);
        right[2] = state.b0(step, 1), right[3] = state.b1(step, 1);
      });
      scale_rows(dq, now.from_start);
      dot_rows(dq, s.q(), column, s.sums().u[warp]);
      add_masked_times<true>(dq, s.r(), s.k(), column);
      store_columns(a.dq.row(b, first, h) + column, a.dq.token, left, [&](int j, int x, int half, int, int) {
        return float2{dq[j][x][2 * half], dq[j][x][2 * half + 1]};
      });
    }
    update_state(state, exp2f(now.cum[kTokens - 1]), s.k(), column, now.weight, s.v());
    __syncthreads();
    start(i + 1);
    if (warp == kWarps - 1) {
      const int token = static_cast<int>(threadIdx.x) % kWarp * 2;
      float2 u{};
      for (int j = 0; j < kWarps; ++j) u.x += s.sums().u[j][token], u.y += s.sums().u[j][token + 1];
      const float2 after = running_sums<true>(u);
      // exp(cum_63) <H, S>; where so little comes through the chunk, the difference is nothing but rounding.
      const float inner =
          now.from_start[kTokens - 1] < kRounding ? 0.f : crossing - __shfl_sync(~0u, after.x, 0);
      const std::int64_t at = (head * a.cut.chunks + chunk) * kTokens + token;
      const float2 known = *reinterpret_cast<const float2*>(a.between.da + at),
                   product = *reinterpret_cast<const float2*>(a.between.product + at);
      const float2 da{known.x + after.x + inner, known.y + after.y + inner};
      if (token < left) *(a.ddt(b, first + token) + h) = natural_rate * da.x + product.x;
      if (token + 1 < left) *(a.ddt(b, first + token + 1) + h) = natural_rate * da.y + product.y;
      drate += da.x * now.dt[token] + da.y * now.dt[token + 1];
      crossing = inner + a.between.chunk_w[head * a.cut.chunks + chunk];
    }
  }
  drate = block_reduce<Plus>(warp == kWarps - 1 ? drate : 0.f);
  if (threadIdx.x == 0) a.sums.da_log[head * a.cut.pieces + piece] = natural_rate * drate;
}

}  // namespace

void enqueue_queries(const BackwardArguments& a, std::int64_t n, std::int64_t p, const Stream& stream) {
  constexpr auto op = "ssd_scan_backward";
  with_widths(n, p, op, [&](auto n_, auto p_) {
    launch(op, stream, {a.cut.heads() * a.cut.pieces, n_ * 2, Shared<n_, p_>::kBytes}, queries<n_, p_>, a);
  });
}

}  // namespace ssd
}  // namespace transmamba::cuda
