// The backward walk: gradients of keys and values (kernels/cuda/ssd_backward_bf16.cuh).
#include "kernels/cuda/ssd_backward_bf16.cuh"

namespace transmamba::cuda::ssd {
namespace {

template <int N, int P>
struct Shared {
  using Q = Tile<kTokens, N>;
  using V = Tile<kTokens, P>;
  using H = Tile<P, N>;
  using M = Tile<kTokens, kTokens>;
  static constexpr int kWarps = P / 16;
  struct Sums {
    float rows[4][kTokens];         // sum_t P R E of each block of t, by s
    float columns[4][kTokens];      // sum_s X of each block of s, by t
    float states[kWarps][kTokens];  // exp(cum_63 - cum_s) k_s . H v_s, of each warp's columns
  };
  static constexpr int kTiles = 2 * Q::kBytes + 2 * V::kBytes + H::kBytes + 2 * M::kBytes;
  static constexpr std::size_t kBytes = kTiles + 2 * sizeof(Steps) + sizeof(Sums);
  char* base;
  __device__ bf16* at(int offset) const { return reinterpret_cast<bf16*>(base + offset); }
  __device__ Q q() const { return {at(0)}; }
  __device__ Q k() const { return {at(Q::kBytes)}; }
  __device__ V v() const { return {at(2 * Q::kBytes)}; }
  __device__ V dy() const { return {at(2 * Q::kBytes + V::kBytes)}; }
  __device__ H gradient() const { return {at(2 * Q::kBytes + 2 * V::kBytes)}; }
  __device__ M p() const { return {at(kTiles - 2 * M::kBytes)}; }
  __device__ M r() const { return {at(kTiles - M::kBytes)}; }
  __device__ Steps& steps(int i) const { return reinterpret_cast<Steps*>(base + kTiles)[i % 2]; }
  __device__ Sums& sums() const { return *reinterpret_cast<Sums*>(base + kTiles + 2 * sizeof(Steps)); }
};

/// Blocks (s, t) of P^T o E and R^T o E with s <= t, and the sums of their products.
template <int N, int P>
__device__ void masked_products(const Shared<N, P>& s, const Steps& now, int warp) {
  const int g = static_cast<int>(threadIdx.x) % kWarp / 4, c = static_cast<int>(threadIdx.x) % 4 * 2;
  for (int block = warp; block < kTriangle; block += P / 16) {
    const int bt = triangle_row(block), bs = block - bt * (bt + 1) / 2;
    float p[2][4] = {}, r[2][4] = {};
    token_products<N>(p, s.k(), 16 * bs, s.q(), 16 * bt);
    token_products<P>(r, s.v(), 16 * bs, s.dy(), 16 * bt);
    float row_sum[2] = {}, column_sum[2][2] = {};
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      const int to = 16 * bt + 8 * x + c;
      const float2 cum = *reinterpret_cast<const float2*>(now.cum + to);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int from = 16 * bs + g + 8 * half;
        const float at = now.cum[from], dt = now.dt[from];
        const float e0 = from <= to ? exp2f(cum.x - at) : 0.f, e1 = from <= to + 1 ? exp2f(cum.y - at) : 0.f;
        const float p0 = p[x][2 * half] * e0, p1 = p[x][2 * half + 1] * e1;
        const float x0 = p0 * r[x][2 * half], x1 = p1 * r[x][2 * half + 1];
        s.p().set(from, to, p0, p1);
        s.r().set(from, to, r[x][2 * half] * e0, r[x][2 * half + 1] * e1);
        row_sum[half] += x0 + x1;
        column_sum[x][0] += dt * x0, column_sum[x][1] += dt * x1;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      row_sum[half] += __shfl_xor_sync(0xffffffffu, row_sum[half], 1);
      row_sum[half] += __shfl_xor_sync(0xffffffffu, row_sum[half], 2);
      if (c == 0) s.sums().rows[bt][16 * bs + g + 8 * half] = row_sum[half];
    }
#pragma unroll
    for (int x = 0; x < 2; ++x)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& sum = column_sum[x][i];
#pragma unroll
        for (int distance = 4; distance < kWarp; distance *= 2)
          sum += __shfl_xor_sync(0xffffffffu, sum, distance);
        if (g == 0) s.sums().columns[bs][16 * bt + 8 * x + c + i] = sum;
      }
  }
}

/// What the chunk's decays get from this walk; by one warp.
template <int N, int P>
__device__ void put_sums(const Shared<N, P>& s, const Steps& now, const Between& out, std::int64_t head,
                         std::int64_t chunks, std::int64_t chunk) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, token = 2 * lane, block = token / 16;
  float2 rows{}, columns{}, states{};
  const auto add = [&](float2& to, const float* from) { to.x += from[token], to.y += from[token + 1]; };
  for (int i = block; i < 4; ++i) add(rows, s.sums().rows[i]);
  for (int i = 0; i <= block; ++i) add(columns, s.sums().columns[i]);
  for (int i = 0; i < P / 16; ++i) add(states, s.sums().states[i]);
  const float2 dt{now.dt[token], now.dt[token + 1]};
  const float2 w{dt.x * states.x, dt.y * states.y};
  const float2 to = running_sums<true>(columns), from = running_sums<true>({dt.x * rows.x, dt.y * rows.y}),
               before = running_sums<false>(w);
  const std::int64_t at = (head * chunks + chunk) * kTokens + token;
  *reinterpret_cast<float2*>(out.da + at) = {to.x - from.x + before.x - w.x, to.y - from.y + before.y - w.y};
  *reinterpret_cast<float2*>(out.product + at) = {rows.x + states.x, rows.y + states.y};
  if (lane == kWarp - 1) out.chunk_w[head * chunks + chunk] = before.y;
}

/// A block a piece. A warp has 16 columns of v, and those of H, transposed: 16 rows of H^T (p, n).
template <int N, int P>
__global__ void __launch_bounds__(P * 2) keys(const __grid_constant__ BackwardArguments a) {
  extern __shared__ __align__(16) char shared[];
  const Shared<N, P> s{shared};
  constexpr int kThreadsOf = P * 2;
  constexpr int kWarps = P / 16;
  const std::int64_t head = blockIdx.x / a.cut.pieces, b = head / a.cut.h, h = head % a.cut.h;
  const int piece = static_cast<int>(blockIdx.x % a.cut.pieces), warp = static_cast<int>(threadIdx.x) / kWarp;
  const int column = 16 * warp;
  const std::int64_t begin = static_cast<std::int64_t>(piece) * a.cut.per_piece,
                     end = min(a.cut.chunks, begin + a.cut.per_piece);
  const int count = static_cast<int>(end - begin);
  const float rate = -expf(a.a_log[h]) * kLog2e, skip = a.d_skip ? a.d_skip[h] : 0.f;

  const auto start = [&](int i) {
    if (i < count) {
      const std::int64_t first = (end - 1 - i) * kTokens, left = a.cut.t - first;
      s.q().template start_copy<kThreadsOf>(a.q.row(b, first, h), a.q.token, left);
      s.k().template start_copy<kThreadsOf>(a.k.row(b, first, h), a.k.token, left);
      s.v().template start_copy<kThreadsOf>(a.v.row(b, first, h), a.v.token, left);
      s.dy().template start_copy<kThreadsOf>(a.dy.row(b, first, h), a.dy.token, left);
    }
    commit_copies();
  };
  StepReader reader(a.dt, b, h, a.cut.t);
  if (warp == 0) reader.fetch(end - 1);
  start(0);

  Slice<N> gradient;
  const float* const leaving = a.leaving.of(a.leaving.state, head, piece, N * P);
  gradient.each([&](int row, int n, float& value) { value = leaving[n * P + column + row]; });

  float dskip = 0;
  for (int i = 0; i < count; ++i) {
    const std::int64_t chunk = end - 1 - i, first = chunk * kTokens, left = a.cut.t - first;
    Steps& now = s.steps(i);
    if (warp == 0) {
      reader.put(now, rate);
      if (i + 1 < count) reader.fetch(chunk - 1);
    }
#pragma unroll
    for (int tile = 0; tile < N / 8; ++tile)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        s.gradient().set(column + threadIdx.x % kWarp / 4 + 8 * half, 8 * tile + threadIdx.x % 4 * 2,
                         gradient.value[tile][2 * half], gradient.value[tile][2 * half + 1]);
    wait_copies<0>();
    __syncthreads();
    masked_products(s, now, warp);
    __syncthreads();

    {
      Columns dv = {};
      tokens_times<N / 16>(dv, s.k(), [&](int step, std::uint32_t(&right)[4]) {
        right[0] = gradient.b0(step, 0), right[1] = gradient.b1(step, 0);
        right[2] = gradient.b0(step, 1), right[3] = gradient.b1(step, 1);
      });
      scale_rows(dv, now.to_end);
      dot_rows(dv, s.v(), column, s.sums().states[warp]);
      add_masked_times<false>(dv, s.p(), s.dy(), column);
      store_columns(a.dv.row(b, first, h) + column, a.dv.token, left,
                    [&](int j, int x, int half, int row, int c) {
                      const float2 dy = s.dy().get(row, column + c), v = s.v().get(row, column + c);
                      dskip += dy.x * v.x + dy.y * v.y;
                      return float2{now.dt[row] * dv[j][x][2 * half] + skip * dy.x,
                                    now.dt[row] * dv[j][x][2 * half + 1] + skip * dy.y};
                    });
    }
    for (int from = 16 * warp; from < N; from += 16 * kWarps) {
      Columns dk = {};
      tokens_times<P / 16>(dk, s.v(), [&](int step, std::uint32_t(&right)[4]) {
        s.gradient().load_b(right, 16 * step, from);
      });
      scale_rows(dk, now.to_end);
      add_masked_times<false>(dk, s.r(), s.q(), from);
      store_columns(a.dk.row(b, first, h) + from, a.dk.token, left,
                    [&](int j, int x, int half, int row, int) {
                      return float2{now.dt[row] * dk[j][x][2 * half], now.dt[row] * dk[j][x][2 * half + 1]};
                    });
    }
    update_state(gradient, exp2f(now.cum[kTokens - 1]), s.dy(), column, now.from_start, s.q());
    __syncthreads();
    start(i + 1);
    if (warp == kWarps - 1) put_sums(s, now, a.between, head, a.cut.chunks, chunk);
  }

  float* const out = a.between.gradient + (head * a.cut.pieces + piece) * N * P;
  gradient.each([&](int row, int n, float& value) { out[n * P + column + row] = value; });
  if (a.dstate_in.data && piece == 0)
    gradient.each([&](int row, int n, float& value) { a.dstate_in(b, h, n)[column + row] = value; });
  dskip = block_reduce<Plus>(dskip);
  if (threadIdx.x == 0) a.sums.dd_skip[head * a.cut.pieces + piece] = dskip;
}

}  // namespace

void enqueue_keys(const BackwardArguments& a, std::int64_t n, std::int64_t p, const Stream& stream) {
  constexpr auto op = "ssd_scan_backward";
  with_widths(n, p, op, [&](auto n_, auto p_) {
    launch(op, stream, {a.cut.heads() * a.cut.pieces, p_ * 2, Shared<n_, p_>::kBytes}, keys<n_, p_>, a);
  });
}

}  // namespace transmamba::cuda::ssd
