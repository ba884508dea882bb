// Segment summaries in bfloat16: of the pieces that other kernels cut a sequence in, and the op itself.
#include "kernels/cuda/ssd_warpgroup.cuh"
#include "kernels/elementwise.h"

namespace transmamba::cuda {
namespace ssd {
namespace {

/// The state that a piece adds, sum_s weight_s x_s z_s^T. Of states, x = k, z = v, and weights reach from a
/// token to the piece's end; of their gradients, x = q, z = dy, and weights reach from the piece's start.
struct Job {
  CUtensorMap x, z;  // of chunks
  Summaries out;
  int first = 0, count = 0;  // pieces
  bool gradients = false;
};

struct SummaryArguments {
  Job jobs[2];  // blockIdx.y's
  Strided<const float> dt;
  const float* a_log;
  Cut cut;
};

template <int N, int P>
struct SummaryShared {
  static constexpr int kStages = 3;
  using X = Swizzled<kTokens, N>;
  using Z = Swizzled<kTokens, P>;
  static constexpr int kStage = X::kBytes + Z::kBytes;
  static constexpr std::size_t kBytes = 1024 + kStages * (kStage + sizeof(Arrival)) + 2 * sizeof(Steps);
  char* base;  // a multiple of 1024
  __device__ explicit SummaryShared(char* shared) : base(aligned(shared)) {}
  __device__ X x(int i) const { return {base + i % kStages * kStage}; }
  __device__ Z z(int i) const { return {base + i % kStages * kStage + X::kBytes}; }
  __device__ Steps& steps(int i) const { return reinterpret_cast<Steps*>(base + kStages * kStage)[i % 2]; }
  __device__ Arrival& arrival(int i) const {
    return reinterpret_cast<Arrival*>(base + kStages * kStage + 2 * sizeof(Steps))[i % kStages];
  }
};

/// Of one piece, from its end to its start: what was read last is still near when a scan reads it again,
/// first.
template <int N, int P>
__device__ __forceinline__ void summarise_piece(const SummaryArguments& a, const Job& job,
                                                const SummaryShared<N, P>& s) {
  const Place my;
  constexpr int kStages = SummaryShared<N, P>::kStages,
                kOtherWarp = 3;  // which has least to do where p is 96
  const std::int64_t head = blockIdx.x / job.count, b = head / a.cut.h, h = head % a.cut.h;
  const int piece = job.first + static_cast<int>(blockIdx.x % job.count);
  const std::int64_t begin = static_cast<std::int64_t>(piece) * a.cut.per_piece,
                     end = min(a.cut.chunks, begin + a.cut.per_piece);
  const int count = static_cast<int>(end - begin);
  const float rate = -expf(a.a_log[h]) * kLog2e;

  const auto start = [&](int i) {
    if (i >= count) return;
    s.arrival(i).expect(s.kStage);
    copy_chunk(s.x(i), job.x, b, h, end - 1 - i, s.arrival(i));
    copy_chunk(s.z(i), job.z, b, h, end - 1 - i, s.arrival(i));
  };
  const bool copies = threadIdx.x == kOtherWarp * kWarp;
  if (copies) {
    for (int i = 0; i < kStages; ++i) s.arrival(i).start();
    for (int i = 0; i < kStages - 1; ++i) start(i);
  }
  StepReader reader(a.dt, b, h, a.cut.t);
  if (my.warp == kOtherWarp) reader.fetch(end - 1);
  State<N, P> state;
  state.fill(0);
  float log_decay = 0;  // of chunks so far
  for (int i = 0; i < count; ++i) {
    Steps& now = s.steps(i);
    if (my.warp == kOtherWarp) {
      reader.put(now, rate, job.gradients ? 0 : log_decay);
      if (i + 1 < count) reader.fetch(end - 2 - i);
    }
    barrier();  // steps are there; nobody needs chunk i - 1 any more
    if (copies) start(i + kStages - 1);
    s.arrival(i).wait(i / kStages);
    log_decay += now.cum[kTokens - 1];
    if (job.gradients) state.scale(exp2f(now.cum[kTokens - 1]));
    state.add(my, s.z(i), job.gradients ? now.from_start : now.weight, s.x(i));
  }
  float* const out = job.out.of(job.out.state, head, piece, N * P);
  state.each(my, [&](int p, int n, float value) { out[n * P + p] = value; });
  if (threadIdx.x == 0) *job.out.of(job.out.log_decay, head, piece, 1) = log_decay;
}

/// A block, one warpgroup, a piece.
template <int N, int P>
__global__ void __launch_bounds__(kGroup, kBlocksPerProcessor)
    summarise(const __grid_constant__ SummaryArguments a) {
  if constexpr (kHasWarpgroups) {
    extern __shared__ char shared[];
    const Job& job = a.jobs[blockIdx.y];
    if (static_cast<std::int64_t>(blockIdx.x) < a.cut.heads() * job.count)
      summarise_piece(a, job, SummaryShared<N, P>(shared));
  } else {
    __trap();
  }
}

}  // namespace

void summarise_pieces(const Cut& cut, const ConstView& k, const ConstView& v, const ConstView& q,
                      const ConstView& dy, const ConstView& dt, const ConstView& a_log, bool with_last,
                      const Summaries& states, const Summaries& gradients, const Stream& stream,
                      std::string_view op) {
  with_widths(k.dim(3), v.dim(3), op, [&](auto n, auto p) {
    const auto map = [&](const ConstView& x, std::string_view name) {
      return tensor_map(x, kTokens, op, name);
    };
    SummaryArguments arguments{{}, strided<const float>(dt), a_log.ptr<float>(), cut};
    arguments.jobs[0] = {map(k, "k"), map(v, "v"), states, 0, cut.pieces - (with_last ? 0 : 1), false};
    if (q) arguments.jobs[1] = {map(q, "q"), map(dy, "dy"), gradients, 1, cut.pieces - 1, true};
    const std::int64_t blocks = cut.heads() * std::max(arguments.jobs[0].count, arguments.jobs[1].count);
    launch(op, stream, {blocks, kGroup, SummaryShared<n, p>::kBytes, q ? 2 : 1}, summarise<n, p>, arguments);
  });
}

namespace {

/// state_out = all pieces' summaries after state_in. A thread an element.
__global__ void combine_pieces(Summaries pieces, Strided<const float> state_in, Strided<float> state_out,
                               Strided<float> log_decay, std::int64_t h, std::int64_t n, std::int64_t p) {
  const std::int64_t head = blockIdx.x, b = head / h, j = head % h;
  float whole = 0;
  for (int i = 0; i < pieces.pieces; ++i) whole += *pieces.of(pieces.log_decay, head, i, 1);
  if (threadIdx.x == 0 && blockIdx.y == 0 && log_decay.data) log_decay(b)[j] = whole / kLog2e;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
  if (index >= n * p) return;
  float state = state_in.data ? state_in(b, j, index / p)[index % p] : 0.f;
  for (int i = 0; i < pieces.pieces; ++i)
    state = exp2f(*pieces.of(pieces.log_decay, head, i, 1)) * state +
            pieces.of(pieces.state, head, i, n * p)[index];
  state_out(b, j, index / p)[index % p] = state;
}

}  // namespace
}  // namespace ssd

void ssd_summary_bf16(const SsdSummary& a, const Stream& stream) {
  constexpr auto op = "ssd_summary";
  const std::int64_t n = a.k.dim(3), p = a.v.dim(3);
  const ssd::Cut cut(a.k.dim(0), a.k.dim(1), a.k.dim(2));
  if (cut.heads() == 0) return;
  if (cut.t == 0) {  // nothing but a state that passes through
    if (a.state_in) cuda::copy({.x = a.state_in, .y = a.state_out}, stream);
    if (!a.state_in) cuda::fill({.value = 0, .y = a.state_out}, stream);
    if (a.log_decay) cuda::fill({.value = 0, .y = a.log_decay}, stream);
    return;
  }
  const std::int64_t count = cut.heads() * cut.pieces;
  const Workspace<float> memory(workspace::ssd_summary(cut, n, p), stream, op);
  const ssd::Summaries pieces{memory.data(), memory.data() + count * n * p, cut.pieces};
  ssd::summarise_pieces(cut, a.k, a.v, {}, {}, a.dt, a.a_log, true, pieces, {}, stream, op);
  launch(op, stream, {cut.heads(), kThreads, 0, (n * p + kThreads - 1) / kThreads}, ssd::combine_pieces,
         pieces, strided<const float>(a.state_in), strided<float>(a.state_out), strided<float>(a.log_decay),
         cut.h, n, p);
}

}  // namespace transmamba::cuda
