// The scan in bfloat16, forward (kernels/cuda/ssd_bf16.cuh says how).
#include "kernels/cuda/ssd_bf16.cuh"
#include "kernels/cuda/warpgroup.cuh"
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

constexpr int kThreadsHere = 128;  // a warpgroup

template <int N, int P>
struct ForwardShared {
  using Q = Swizzled<kTokens, N>;
  using V = Swizzled<kTokens, P>;
  using S = Swizzled<P, N>;  // S^T, rounded
  static constexpr int kStage = 2 * Q::kBytes + V::kBytes;
  static constexpr std::size_t kBytes = 1024 + 2 * kStage + S::kBytes + 2 * sizeof(Steps);
  char* base;  // a multiple of 1024
  __device__ explicit ForwardShared(char* shared)
      : base(shared + (1024 - shared_address(shared) % 1024) % 1024) {}
  __device__ Q q(int i) const { return {base + i % 2 * kStage}; }
  __device__ Q k(int i) const { return {base + i % 2 * kStage + Q::kBytes}; }
  __device__ V v(int i) const { return {base + i % 2 * kStage + 2 * Q::kBytes}; }
  __device__ S state() const { return {base + 2 * kStage}; }
  __device__ Steps& steps(int i) const {
    return reinterpret_cast<Steps*>(base + 2 * kStage + S::kBytes)[i % 2];
  }
};

/// S^T (p, n) of a block: 64 rows a tile; a warp has rows 16 warp.. of each. Rows past p stay zero.
template <int N, int P>
struct State {
  static constexpr int kTiles = (P + 63) / 64;
  WarpgroupTile<N> tile[kTiles];

  /// f(p, n, value) of the elements that this thread holds.
  template <class F>
  __device__ void each(F&& f) {
    const int warp = static_cast<int>(threadIdx.x) / kWarp, g = static_cast<int>(threadIdx.x) % kWarp / 4,
              c = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if (64 * t + 16 * warp >= P) continue;
#pragma unroll
      for (int j = 0; j < N / 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) f(64 * t + 16 * warp + g + i / 2 * 8, 8 * j + c + i % 2, tile[t][j][i]);
    }
  }
  __device__ void fill(float x) {
#pragma unroll
    for (auto& t : tile)
#pragma unroll
      for (auto& j : t)
#pragma unroll
        for (float& value : j) value = x;
  }
  __device__ void scale(float factor) {
#pragma unroll
    for (auto& t : tile)
#pragma unroll
      for (auto& j : t)
#pragma unroll
        for (float& value : j) value *= factor;
  }
  __device__ void put(const Swizzled<P, N>& out) const {
    const int warp = static_cast<int>(threadIdx.x) / kWarp, g = static_cast<int>(threadIdx.x) % kWarp / 4,
              c = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if (64 * t + 16 * warp >= P) continue;
#pragma unroll
      for (int j = 0; j < N / 8; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          out.set(64 * t + 16 * warp + g + 8 * half, 8 * j + c, tile[t][j][2 * half],
                  tile[t][j][2 * half + 1]);
    }
  }
};

/// M = G o E o dt + D, causal, rounded: the left operand of M V. A thread's rows are `row` and row + 8.
__device__ inline void mask(std::uint32_t (&m)[kTokens / 16][4], const WarpgroupTile<kTokens>& g,
                            const Steps& now, int row, float skip) {
  const int c = static_cast<int>(threadIdx.x) % 4 * 2;
  const float at[2] = {now.cum[row], now.cum[row + 8]};
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
    const int from = 8 * j + c;
    if (8 * j > row / 16 * 16 + 15) {  // the whole tile is later
      m[j / 2][j % 2 * 2] = m[j / 2][j % 2 * 2 + 1] = 0;
      continue;
    }
    const float2 cum = *reinterpret_cast<const float2*>(now.cum + from),
                 dt = *reinterpret_cast<const float2*>(now.dt + from);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int to = row + 8 * half;
      float low = from <= to ? g[j][2 * half] * exp2f(at[half] - cum.x) * dt.x : 0.f;
      float high = from + 1 <= to ? g[j][2 * half + 1] * exp2f(at[half] - cum.y) * dt.y : 0.f;
      if (from == to) low += skip;
      if (from + 1 == to) high += skip;
      m[j / 2][j % 2 * 2 + half] = pack(low, high);
    }
  }
}

/// A block, one warpgroup, a piece. A warp has 16 tokens of y, and rows of S^T (p, n).
template <int N, int P>
__global__ void __launch_bounds__(kThreadsHere, kBlocksPerProcessor)
    scan(const __grid_constant__ ForwardArguments a) {
  extern __shared__ char shared[];
  const ForwardShared<N, P> s(shared);
  const std::int64_t head = blockIdx.x / a.cut.pieces, b = head / a.cut.h, h = head % a.cut.h;
  const int piece = static_cast<int>(blockIdx.x % a.cut.pieces), warp = static_cast<int>(threadIdx.x) / kWarp;
  const int g = static_cast<int>(threadIdx.x) % kWarp / 4, c = static_cast<int>(threadIdx.x) % 4 * 2;
  const int row = 16 * warp + g;  // and row + 8
  const std::int64_t begin = static_cast<std::int64_t>(piece) * a.cut.per_piece;
  const int count = static_cast<int>(min(a.cut.chunks, begin + a.cut.per_piece) - begin);
  const float rate = -expf(a.a_log[h]) * kLog2e, skip = a.d_skip ? a.d_skip[h] : 0.f;

  const auto start = [&](int i) {
    if (i < count) {
      const std::int64_t first = (begin + i) * kTokens, left = a.cut.t - first;
      s.q(i).template start_copy<kThreadsHere>(a.q.row(b, first, h), a.q.token, left);
      s.k(i).template start_copy<kThreadsHere>(a.k.row(b, first, h), a.k.token, left);
      s.v(i).template start_copy<kThreadsHere>(a.v.row(b, first, h), a.v.token, left);
    }
    commit_copies();
  };
  StepReader reader(a.dt, b, h, a.cut.t);
  if (warp == 0) reader.fetch(begin);
  start(0);

  State<N, P> state;
  state.fill(0);
  if (a.state_in.data) state.each([&](int p, int n, float& value) { value = a.state_in(b, h, n)[p]; });
  for (int i = 0; i < piece; ++i) {
    const float decay = exp2f(*a.before.of(a.before.log_decay, head, i, 1));
    const float* const local = a.before.of(a.before.state, head, i, N * P);
    state.each([&](int p, int n, float& value) { value = decay * value + local[n * P + p]; });
  }

  for (int i = 0; i < count; ++i) {
    const auto q = s.q(i), k = s.k(i);
    const auto v = s.v(i);
    Steps& now = s.steps(i);
    state.put(s.state());
    if (warp == 0) {
      reader.put(now, rate);
      if (i + 1 < count) reader.fetch(begin + i + 1);
    }
    wait_copies<0>();
    fence_shared_for_unit();
    __syncthreads();
    start(i + 1);

    // M = Q K^T o E o dt + D.
    std::uint32_t m[kTokens / 16][4];
    {
      WarpgroupTile<kTokens> product;
      warpgroup_fence();
#pragma unroll
      for (int step = 0; step < N / 16; ++step)
        warpgroup_multiply<false>(product, q.along_columns(step), k.along_columns(step), step > 0);
      warpgroup_commit();
      warpgroup_wait<0>();
      hold(product);
      mask(m, product, now, row, skip);
    }

    // Y = exp(cum) Q S + M V.
    WarpgroupTile<P> y;
    warpgroup_fence();
#pragma unroll
    for (int step = 0; step < N / 16; ++step)
      warpgroup_multiply<false>(y, q.along_columns(step), s.state().along_columns(step), step > 0);
    warpgroup_commit();
    warpgroup_wait<0>();
    hold(y);
    const float decay[2] = {now.from_start[row], now.from_start[row + 8]};
#pragma unroll
    for (auto& tile : y) {
      tile[0] *= decay[0], tile[1] *= decay[0];
      tile[2] *= decay[1], tile[3] *= decay[1];
    }
    hold(y);
    warpgroup_fence();
#pragma unroll
    for (int step = 0; step < kTokens / 16; ++step)
      warpgroup_multiply<true>(y, m[step], v.along_rows(step), true);
    warpgroup_commit();

    warpgroup_wait<0>();  // or there would be too few registers
    hold(y);
    const std::int64_t first = (begin + i) * kTokens;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (first + row + 8 * half >= a.cut.t) continue;
      bf16* const out = a.y.row(b, first + row + 8 * half, h) + c;
#pragma unroll
      for (int j = 0; j < P / 8; ++j)
        *reinterpret_cast<std::uint32_t*>(out + 8 * j) = pack(y[j][2 * half], y[j][2 * half + 1]);
    }

    // S^T = exp(cum_63) S^T + (weight o V)^T K.
    state.scale(exp2f(now.cum[kTokens - 1]));
#pragma unroll
    for (int t = 0; t < State<N, P>::kTiles; ++t) {
      std::uint32_t left[kTokens / 16][4] = {};
      if (64 * t + 16 * warp < P)
#pragma unroll
        for (int step = 0; step < kTokens / 16; ++step) {
          v.load_a_transposed(left[step], 16 * step, 64 * t + 16 * warp);
          scale_along_k(left[step], now.weight, 16 * step);
        }
      hold(state.tile[t]);
      warpgroup_fence();
#pragma unroll
      for (int step = 0; step < kTokens / 16; ++step)
        warpgroup_multiply<true>(state.tile[t], left[step], k.along_rows(step), true);
      warpgroup_commit();
    }
    warpgroup_wait<0>();
#pragma unroll
    for (auto& tile : state.tile) hold(tile);
    __syncthreads();  // nobody reads S^T of this chunk any more
  }
  if (a.state_out.data && piece == a.cut.pieces - 1)
    state.each([&](int p, int n, float& value) { a.state_out(b, h, n)[p] = value; });
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
    launch(op, stream, {count, ssd::kThreadsHere, ssd::ForwardShared<n_, p_>::kBytes}, ssd::scan<n_, p_>,
           arguments);
  });
}

}  // namespace transmamba::cuda
