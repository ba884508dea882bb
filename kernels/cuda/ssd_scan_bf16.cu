// The scan in bfloat16, forward (kernels/cuda/ssd_bf16.cuh says how).
#include "kernels/cuda/ssd_warpgroup.cuh"
#include "kernels/elementwise.h"

namespace transmamba::cuda {
namespace ssd {
namespace {

struct ForwardArguments {
  CUtensorMap q, k, v;  // of chunks
  OutRows y;
  Strided<const float> dt, state_in;
  const float *a_log, *d_skip;
  Strided<float> state_out;
  Summaries before;
  Cut cut;
};

// A block is two warpgroups: one makes outputs, the other the states that these need, a chunk ahead.
constexpr int kThreadsOfBlock = 2 * kGroup;
constexpr int kCopyingThread = kThreadsOfBlock - kWarp;  // of the warp that has least to do where p is 96

template <int N, int P>
struct ForwardShared {
  using Q = Swizzled<kTokens, N>;
  using V = Swizzled<kTokens, P>;
  using S = Swizzled<P, N>;  // S^T, rounded
  static constexpr int kStage = 2 * Q::kBytes + V::kBytes;
  static constexpr std::size_t kBytes = 1024 + 2 * kStage + 2 * S::kBytes + 2 * sizeof(Steps) + 16;
  /// A processor has 228 KiB, of which each block takes one.
  static constexpr int kBlocks = 2 * (kBytes + 1024) <= 228 * 1024 ? 2 : 1;
  char* base;  // a multiple of 1024
  __device__ explicit ForwardShared(char* shared) : base(aligned(shared)) {}
  __device__ Q q(int i) const { return {base + i % 2 * kStage}; }
  __device__ Q k(int i) const { return {base + i % 2 * kStage + Q::kBytes}; }
  __device__ V v(int i) const { return {base + i % 2 * kStage + 2 * Q::kBytes}; }
  /// At the start of chunk i. When its products are done, the chunk's outputs take the place.
  __device__ S state(int i) const { return {base + 2 * kStage + i % 2 * S::kBytes}; }
  __device__ V y(int i) const { return {state(i).data}; }
  static_assert(V::kBytes <= S::kBytes);
  /// (n, p), at the start of the piece.
  __device__ float* entering() const { return reinterpret_cast<float*>(state(0).data); }
  __device__ Steps& steps(int i) const {
    return reinterpret_cast<Steps*>(base + 2 * kStage + 2 * S::kBytes)[i % 2];
  }
  __device__ Arrival& arrival(int i) const {
    return reinterpret_cast<Arrival*>(base + 2 * kStage + 2 * S::kBytes + 2 * sizeof(Steps))[i % 2];
  }
};

/// M = G o E o dt + D, causal, rounded: the left operand of M V. A thread's rows are `row` and row + 8.
[[maybe_unused]] __device__ inline void mask(std::uint32_t (&m)[kTokens / 16][4],
                                             const WarpgroupTile<kTokens>& g, const Steps& now,
                                             const Place& my, float skip) {
  const int row = 16 * my.warp + my.g;
  const float at[2] = {now.cum[row], now.cum[row + 8]};
#pragma unroll
  for (int j = 0; j < kTokens / 8; ++j) {
    std::uint32_t* const out = &m[j / 2][j % 2 * 2];
    out[0] = out[1] = 0;
    if (j / 2 > my.warp) continue;  // all of it is later
    const int from = 8 * j + my.c;
    const float2 cum = *reinterpret_cast<const float2*>(now.cum + from),
                 dt = *reinterpret_cast<const float2*>(now.dt + from);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float low = g[j][2 * half] * (fast_exp2(at[half] - cum.x) * dt.x);
      float high = g[j][2 * half + 1] * (fast_exp2(at[half] - cum.y) * dt.y);
      if (j / 2 == my.warp) {
        const int to = row + 8 * half;
        low = from < to ? low : from == to ? low + skip : 0.f;
        high = from + 1 < to ? high : from + 1 == to ? high + skip : 0.f;
      }
      out[half] = pack(low, high);
    }
  }
}

/// What both warpgroups of a block know of its piece.
template <int N, int P>
struct Walk {
  const ForwardArguments& a;
  ForwardShared<N, P> s;
  std::int64_t head, b, h, begin;
  int piece, count;  // chunks

  __device__ Walk(const ForwardArguments& a_, char* shared)
      : a(a_), s(shared), head(blockIdx.x / a.cut.pieces), b(head / a.cut.h), h(head % a.cut.h) {
    piece = static_cast<int>(blockIdx.x % a.cut.pieces);
    begin = static_cast<std::int64_t>(piece) * a.cut.per_piece;
    count = static_cast<int>(min(a.cut.chunks, begin + a.cut.per_piece) - begin);
  }
  /// By one thread.
  __device__ void start(int i) const {
    if (i >= count) return;
    s.arrival(i).expect(s.kStage);
    copy_chunk(s.q(i), a.q, b, h, begin + i, s.arrival(i));
    copy_chunk(s.k(i), a.k, b, h, begin + i, s.arrival(i));
    copy_chunk(s.v(i), a.v, b, h, begin + i, s.arrival(i));
  }
};

/// The state that enters the piece: state_in and the summaries of all pieces before.
template <int N, int P>
__device__ __forceinline__ void enter(const Walk<N, P>& walk) {
  const auto& [a, s, head, b, h, begin, piece, count] = walk;
  constexpr int kQuads = N * P / 4 / kThreadsOfBlock;
  static_assert(N * P % (4 * kThreadsOfBlock) == 0 && P % 4 == 0);
  float4 state[kQuads] = {};
  const auto index = [](int quad) { return 4 * (quad * kThreadsOfBlock + static_cast<int>(threadIdx.x)); };
  if (a.state_in.data)
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
      const float* const from = a.state_in(b, h, index(quad) / P) + index(quad) % P;
      state[quad] = {from[0], from[1], from[2], from[3]};
    }
  for (int i = 0; i < piece; ++i) {
    const float decay = exp2f(*a.before.of(a.before.log_decay, head, i, 1));
    const float* const local = a.before.of(a.before.state, head, i, N * P);
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
      const float4 x = *reinterpret_cast<const float4*>(local + index(quad));
      float4& y = state[quad];
      y = {decay * y.x + x.x, decay * y.y + x.y, decay * y.z + x.z, decay * y.w + x.w};
    }
  }
#pragma unroll
  for (int quad = 0; quad < kQuads; ++quad)
    *reinterpret_cast<float4*>(s.entering() + index(quad)) = state[quad];
  barrier();
}

/// A thread of those that make outputs, where two blocks share a processor; 256 less this of the others.
template <int P>
__device__ constexpr int output_registers() {
  return P <= 96 ? 112 : 144;
}

/// Y = exp(cum) Q S + M V. While the unit makes Q S, the warps make M.
template <int N, int P>
__device__ __forceinline__ void outputs(const Walk<N, P>& walk) {
  if constexpr (ForwardShared<N, P>::kBlocks == 2) set_registers<output_registers<P>()>();
  const Place my;
  const auto& [a, s, head, b, h, begin, piece, count] = walk;
  const float skip = a.d_skip ? a.d_skip[h] : 0.f;
  for (int i = 0; i < count; ++i) {
    barrier();
    s.arrival(i).wait(i / 2);
    const auto q = s.q(i), k = s.k(i);
    const Steps& now = s.steps(i);
    WarpgroupTile<kTokens> product;
    WarpgroupTile<P> y;
    warpgroup_fence();
#pragma unroll
    for (int step = 0; step < N / 16; ++step)
      warpgroup_multiply<false>(product, q.along_columns(step), k.along_columns(step), step > 0);
    warpgroup_commit();
#pragma unroll
    for (int step = 0; step < N / 16; ++step)
      warpgroup_multiply<false>(y, q.along_columns(step), s.state(i).along_columns(step), step > 0);
    warpgroup_commit();
    warpgroup_wait<1>();
    hold(product);
    std::uint32_t m[kTokens / 16][4];
    mask(m, product, now, my, skip);
    warpgroup_wait<0>();
    hold(y);
    const float decay[2] = {now.from_start[16 * my.warp + my.g], now.from_start[16 * my.warp + my.g + 8]};
#pragma unroll
    for (auto& tile : y) {
      tile[0] *= decay[0], tile[1] *= decay[0];
      tile[2] *= decay[1], tile[3] *= decay[1];
    }
    hold(y);
    warpgroup_fence();
#pragma unroll
    for (int step = 0; step < kTokens / 16; ++step)
      warpgroup_multiply<true>(y, m[step], s.v(i).along_rows(step), true);
    warpgroup_commit();
    warpgroup_wait<0>();
    hold(y);

    // Through shared memory, so that whole sectors are written.
    barrier<1, kGroup>();  // all four warps' products have read the state
    const auto staged = s.y(i);
    staged.put(16 * my.warp, y);
    __syncwarp();
    const std::int64_t first = (begin + i) * kTokens + 16 * my.warp + my.g;
    bf16* const out = a.y.row(b, first, h) + 4 * my.c;
    const char* const from = staged.at(my.g, 4 * my.c) + 16 * my.warp * 64;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (first + 8 * half >= a.cut.t) continue;
#pragma unroll
      for (int block = 0; block < staged.kBlocks; ++block)
        *reinterpret_cast<uint4*>(out + 8 * half * a.y.token + 32 * block) =
            *reinterpret_cast<const uint4*>(from + 8 * half * 64 + block * staged.kBlock);
    }
  }
}

/// S^T = exp(cum_63) S^T + (weight o V)^T K.
template <int N, int P>
__device__ __forceinline__ void states(const Walk<N, P>& walk) {
  if constexpr (ForwardShared<N, P>::kBlocks == 2) set_registers<256 - output_registers<P>()>();
  const Place my;
  const auto& [a, s, head, b, h, begin, piece, count] = walk;
  const float rate = -expf(a.a_log[h]) * kLog2e;
  StepReader reader(a.dt, b, h, a.cut.t);
  const bool reads = my.warp == kCopyingThread / kWarp % 4;
  if (reads) reader.fetch(begin);
  State<N, P> state;
  state.fill(0);  // rows past p too
  state.each(my, [&](int p, int n, float& value) { value = s.entering()[n * P + p]; });
  barrier<2, kGroup>();  // its memory is that of the rounded ones
  for (int i = 0; i < count; ++i) {
    Steps& now = s.steps(i);
    state.put(my, s.state(i));
    if (reads) {
      reader.put(now, rate);
      if (i + 1 < count) reader.fetch(begin + i + 1);
    }
    fence_shared_for_unit();
    barrier();  // state and steps are there; nobody needs chunk i - 1 any more
    if (threadIdx.x == kCopyingThread) walk.start(i + 1);
    s.arrival(i).wait(i / 2);
    state.scale(exp2f(now.cum[kTokens - 1]));
    state.add(my, s.v(i), now.weight, s.k(i));
  }
  if (a.state_out.data && piece == a.cut.pieces - 1)
    state.each(my, [&](int p, int n, float& value) { a.state_out(b, h, n)[p] = value; });
}

/// A block a piece.
template <int N, int P>
__global__ void __launch_bounds__(kThreadsOfBlock, ForwardShared<N, P>::kBlocks)
    scan(const __grid_constant__ ForwardArguments a) {
  if constexpr (kHasWarpgroups) {
    extern __shared__ char shared[];
    const Walk<N, P> walk(a, shared);
    if (threadIdx.x == kCopyingThread) {
      walk.s.arrival(0).start();
      walk.s.arrival(1).start();
      walk.start(0);
    }
    enter(walk);
    if (threadIdx.x < kGroup)
      outputs(walk);
    else
      states(walk);
  } else {
    __trap();
  }
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
    ssd::summarise_pieces(cut, a.dt, a.a_log, {{a.k, a.v, pieces, 0, cut.pieces - 1}}, stream, op);
  ssd::with_widths(n, p, op, [&](auto n_, auto p_) {
    const ssd::ForwardArguments arguments{tensor_map(a.q, ssd::kTokens, op, "q"),
                                          tensor_map(a.k, ssd::kTokens, op, "k"),
                                          tensor_map(a.v, ssd::kTokens, op, "v"),
                                          ssd::OutRows(a.y, op, "y"),
                                          strided<const float>(a.dt),
                                          strided<const float>(a.state_in),
                                          a.a_log.ptr<float>(),
                                          strided<const float>(a.d_skip).data,
                                          strided<float>(a.state_out),
                                          pieces,
                                          cut};
    launch(op, stream, {count, ssd::kThreadsOfBlock, ssd::ForwardShared<n_, p_>::kBytes}, ssd::scan<n_, p_>,
           arguments);
  });
}

}  // namespace transmamba::cuda
