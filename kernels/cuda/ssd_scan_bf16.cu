// The scan in bfloat16, forward (kernels/cuda/ssd_bf16.cuh says how).
#include "kernels/cuda/ssd_bf16.cuh"
#include "kernels/elementwise.h"

namespace transmamba::cuda {
namespace ssd {
namespace {

struct ForwardArguments {
  InRows q, k, v;
  OutRows y;
  Strided<const float> dt, state_in;
  const float *a_log, *d_skip;
  Strided<float> state_out;
  Summaries before;
  Cut cut;
};

template <int N, int P>
struct ForwardShared {
  using Q = Tile<kTokens, N>;
  using V = Tile<kTokens, P>;
  using M = Tile<kTokens, kTokens>;
  static constexpr int kStage = 2 * Q::kBytes + V::kBytes;
  static constexpr std::size_t kBytes = 2 * kStage + M::kBytes + 2 * sizeof(Steps);
  char* base;
  __device__ Q q(int i) const { return {reinterpret_cast<bf16*>(base + i % 2 * kStage)}; }
  __device__ Q k(int i) const { return {reinterpret_cast<bf16*>(base + i % 2 * kStage + Q::kBytes)}; }
  __device__ V v(int i) const { return {reinterpret_cast<bf16*>(base + i % 2 * kStage + 2 * Q::kBytes)}; }
  __device__ M m() const { return {reinterpret_cast<bf16*>(base + 2 * kStage)}; }
  __device__ Steps& steps(int i) const {
    return reinterpret_cast<Steps*>(base + 2 * kStage + M::kBytes)[i % 2];
  }
};

/// A block a piece. A warp has 16 columns of v and y, and those of the state, transposed: 16 rows of S^T (p,
/// n).
template <int N, int P>
__global__ void __launch_bounds__(P * 2, kBlocksPerProcessor)
    scan(const __grid_constant__ ForwardArguments a) {
  extern __shared__ __align__(16) char shared[];
  const ForwardShared<N, P> s{shared};
  constexpr int kWarps = P / 16;
  constexpr int kThreadsOf = P * 2;
  const std::int64_t head = blockIdx.x / a.cut.pieces, b = head / a.cut.h, h = head % a.cut.h;
  const int piece = static_cast<int>(blockIdx.x % a.cut.pieces), warp = static_cast<int>(threadIdx.x) / kWarp;
  const int g = static_cast<int>(threadIdx.x) % kWarp / 4, c = static_cast<int>(threadIdx.x) % 4 * 2;
  const int column = 16 * warp;
  const std::int64_t begin = static_cast<std::int64_t>(piece) * a.cut.per_piece;
  const int count = static_cast<int>(min(a.cut.chunks, begin + a.cut.per_piece) - begin);
  const float rate = -expf(a.a_log[h]) * kLog2e, skip = a.d_skip ? a.d_skip[h] : 0.f;

  const auto start = [&](int i) {
    if (i < count) {
      const std::int64_t first = (begin + i) * kTokens, left = a.cut.t - first;
      s.q(i).template start_copy<kThreadsOf>(a.q.row(b, first, h), a.q.token, left);
      s.k(i).template start_copy<kThreadsOf>(a.k.row(b, first, h), a.k.token, left);
      s.v(i).template start_copy<kThreadsOf>(a.v.row(b, first, h), a.v.token, left);
    }
    commit_copies();
  };
  StepReader reader(a.dt, b, h, a.cut.t);
  if (warp == 0) reader.fetch(begin);
  start(0);

  Slice<N> state;
  state.each([&](int row, int n, float& value) {
    value = a.state_in.data ? a.state_in(b, h, n)[column + row] : 0.f;
  });
  for (int i = 0; i < piece; ++i) {
    const float decay = exp2f(*a.before.of(a.before.log_decay, head, i, 1));
    const float* const local = a.before.of(a.before.state, head, i, N * P);
    state.each([&](int row, int n, float& value) { value = decay * value + local[n * P + column + row]; });
  }

  for (int i = 0; i < count; ++i) {
    const auto q = s.q(i), k = s.k(i);
    const auto v = s.v(i);
    const auto m = s.m();
    Steps& now = s.steps(i);
    if (warp == 0) {
      reader.put(now, rate);
      if (i + 1 < count) reader.fetch(begin + i + 1);
    }
    wait_copies<0>();
    __syncthreads();
    start(i + 1);

    // M = (Q K^T) o E o dt + D, on and below the diagonal.
    for (int block = warp; block < kTriangle; block += kWarps) {
      const int bi = triangle_row(block), bj = block - bi * (bi + 1) / 2;
      float product[2][4] = {};
      token_products<N>(product, q, 16 * bi, k, 16 * bj);
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        const int from = 16 * bj + 8 * x + c;
        const float2 cum = *reinterpret_cast<const float2*>(now.cum + from),
                     dt = *reinterpret_cast<const float2*>(now.dt + from);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int to = 16 * bi + g + 8 * half;
          const float at = now.cum[to];
          float m0 = from <= to ? product[x][2 * half] * exp2f(at - cum.x) * dt.x : 0.f;
          float m1 = from + 1 <= to ? product[x][2 * half + 1] * exp2f(at - cum.y) * dt.y : 0.f;
          if (from == to) m0 += skip;
          if (from + 1 == to) m1 += skip;
          m.set(to, from, m0, m1);
        }
      }
    }
    __syncthreads();

    // Y = exp(cum) Q S + M V.
    const std::int64_t first = (begin + i) * kTokens;
    Columns y = {};
    tokens_times<N / 16>(y, q, [&](int step, std::uint32_t(&right)[4]) {
      right[0] = state.b0(step, 0), right[1] = state.b1(step, 0);
      right[2] = state.b0(step, 1), right[3] = state.b1(step, 1);
    });
    scale_rows(y, now.from_start);
    add_masked_times<true>(y, m, v, column);
    store_columns(a.y.row(b, first, h) + column, a.y.token, a.cut.t - first,
                  [&](int j, int x, int half, int, int) {
                    return float2{y[j][x][2 * half], y[j][x][2 * half + 1]};
                  });
    update_state(state, exp2f(now.cum[kTokens - 1]), v, column, now.weight, k);
  }
  if (a.state_out.data && piece == a.cut.pieces - 1)
    state.each([&](int row, int n, float& value) { a.state_out(b, h, n)[column + row] = value; });
}

}  // namespace
}  // namespace ssd

void ssd_scan_bf16(const SsdScan& a, const Stream& stream) {
  constexpr auto op = "ssd_scan";
  const std::int64_t n = a.k.dim(3), p = a.v.dim(3);
  const ssd::Cut cut(a.k.dim(0), a.k.dim(1), a.k.dim(2));
  if (cut.heads() == 0) return;
  if (cut.t == 0) {  // nothing but a state that passes through
    if (a.state_out && a.state_in) cuda::copy({.x = a.state_in, .y = a.state_out}, stream);
    if (a.state_out && !a.state_in) cuda::fill({.value = 0, .y = a.state_out}, stream);
    return;
  }
  if (cut.pieces > 1 && a.state_out &&
      a.state_out.raw() == a.state_in.raw()) {  // the last piece may end first
    const Workspace<float> entering(a.state_in.numel(), stream, op);
    SsdScan apart = a;
    const View copied(reinterpret_cast<std::byte*>(entering.data()), DType::f32, a.state_in.shape());
    cuda::copy({.x = a.state_in, .y = copied}, stream);
    apart.state_in = copied;
    return ssd_scan_bf16(apart, stream);
  }
  const std::int64_t count = cut.heads() * cut.pieces;
  const Workspace<float> memory(workspace::ssd_scan(cut, n, p), stream, op);
  const ssd::Summaries pieces{memory.data(), memory.data() + count * n * p, cut.pieces};
  if (cut.pieces > 1)
    ssd::summarise_pieces(cut, a.k, a.v, {}, {}, a.dt, a.a_log, false, pieces, {}, stream, op);
  const ssd::ForwardArguments arguments{ssd::InRows(a.q, op, "q"),
                                        ssd::InRows(a.k, op, "k"),
                                        ssd::InRows(a.v, op, "v"),
                                        ssd::OutRows(a.y, op, "y"),
                                        strided<const float>(a.dt),
                                        strided<const float>(a.state_in),
                                        a.a_log.ptr<float>(),
                                        strided<const float>(a.d_skip).data,
                                        strided<float>(a.state_out),
                                        pieces,
                                        cut};
  ssd::with_widths(n, p, op, [&](auto n_, auto p_) {
    launch(op, stream, {count, p_ * 2, ssd::ForwardShared<n_, p_>::kBytes}, ssd::scan<n_, p_>, arguments);
  });
}

}  // namespace transmamba::cuda
