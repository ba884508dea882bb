// Segment summaries in bfloat16: of the pieces that other kernels cut a sequence in, and the ops themselves.
#include "kernels/cuda/ssd_warpgroup.cuh"
#include "kernels/elementwise.h"

namespace transmamba::cuda {
namespace ssd {
namespace {

/// A PieceSummary, with maps of chunks.
struct Job {
  CUtensorMap x, z;
  Summaries out;
  int first = 0, count = 0;
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

void summarise_pieces(const Cut& cut, const ConstView& dt, const ConstView& a_log,
                      std::initializer_list<PieceSummary> sums, const Stream& stream, std::string_view op) {
  const PieceSummary& one = *sums.begin();
  with_widths(one.x.dim(3), one.z.dim(3), op, [&](auto n, auto p) {
    SummaryArguments arguments{{}, strided<const float>(dt), a_log.ptr<float>(), cut};
    int most = 0, jobs = 0;
    for (const PieceSummary& of : sums) {
      arguments.jobs[jobs++] = {tensor_map(of.x, kTokens, op, of.are_gradients ? "q" : "k"),
                                tensor_map(of.z, kTokens, op, of.are_gradients ? "dy" : "v"),
                                of.out,
                                of.first,
                                of.count,
                                of.are_gradients};
      most = std::max(most, of.count);
    }
    launch(op, stream, {cut.heads() * most, kGroup, SummaryShared<n, p>::kBytes, jobs}, summarise<n, p>,
           arguments);
  });
}

namespace {

struct PassArguments {
  Passage passages[2];  // blockIdx.y's
  Cut cut;
  std::int64_t size, columns;  // of a state
};

/// Four elements of a head's state a thread. What pieces add does not depend on each other, so it is read
/// some pieces at a time.
__global__ void pass(const __grid_constant__ PassArguments a) {
  constexpr int kAtOnce = 8;
  const Passage& way = a.passages[blockIdx.y];
  const std::int64_t blocks = gridDim.x / a.cut.heads(), head = blockIdx.x / blocks;
  const std::int64_t b = head / a.cut.h, h = head % a.cut.h;
  const std::int64_t at = 4 * (blockIdx.x % blocks * blockDim.x + threadIdx.x);
  const bool keeps = !way.out.data;
  const int pieces = a.cut.pieces, summaries = keeps ? pieces - 1 : pieces;
  const auto piece = [&](int i) { return way.backwards ? pieces - 1 - i : i; };
  if (way.log_decay.data && at == 0) {
    float whole = 0;
    for (int i = 0; i < pieces; ++i) whole += *way.pieces.of(way.pieces.log_decay, head, i, 1);
    way.log_decay(b)[h] = whole / kLog2e;
  }
  if (at >= a.size) return;
  const std::int64_t n = at / a.columns, p = at % a.columns;
  float4 state{};
  if (way.in.data) {
    const float* const in = way.in(b, h, n) + p;
    state = {in[0], in[1], in[2], in[3]};
  }
  for (int first = 0; first < pieces; first += kAtOnce) {
    float4 local[kAtOnce];
    float decay[kAtOnce];
    const auto of = [&](int i) {
      return reinterpret_cast<float4*>(way.pieces.of(way.pieces.state, head, piece(first + i), a.size) + at);
    };
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      if (first + i < summaries) {
        local[i] = *of(i);
        decay[i] = exp2f(*way.pieces.of(way.pieces.log_decay, head, piece(first + i), 1));
      }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (keeps && first + i < pieces) *of(i) = state;
      if (first + i < summaries) {
        const float4 x = local[i];
        state = {decay[i] * state.x + x.x, decay[i] * state.y + x.y, decay[i] * state.z + x.z,
                 decay[i] * state.w + x.w};
      }
    }
  }
  if (keeps) return;
  const float after = way.decays_after.data ? expf(way.decays_after(b)[h]) : 1.f;
  float* const out = way.out(b, h, n) + p;
  out[0] = after * state.x, out[1] = after * state.y, out[2] = after * state.z, out[3] = after * state.w;
}

}  // namespace

void pass_pieces(const Cut& cut, std::int64_t n, std::int64_t p, std::initializer_list<Passage> passages,
                 const Stream& stream, std::string_view op) {
  PassArguments arguments{{}, cut, n * p, p};
  int count = 0;
  for (const Passage& passage : passages) arguments.passages[count++] = passage;
  const std::int64_t blocks = (n * p / 4 + kThreads - 1) / kThreads;
  launch(op, stream, {cut.heads() * blocks, kThreads, 0, count}, pass, arguments);
}

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
  ssd::summarise_pieces(cut, a.dt, a.a_log, {{a.k, a.v, pieces, 0, cut.pieces}}, stream, op);
  ssd::pass_pieces(cut, n, p,
                   {{.pieces = pieces,
                     .in = strided<const float>(a.state_in),
                     .out = strided<float>(a.state_out),
                     .log_decay = strided<float>(a.log_decay)}},
                   stream, op);
}

void ssd_entry_gradient_bf16(const SsdEntryGradient& a, const Stream& stream) {
  constexpr auto op = "ssd_entry_gradient";
  const std::int64_t n = a.q.dim(3), p = a.dy.dim(3);
  const ssd::Cut cut(a.q.dim(0), a.q.dim(1), a.q.dim(2));
  if (cut.heads() == 0) return;
  if (cut.t == 0) return cuda::fill({.value = 0, .y = a.dstate_in}, stream);
  const Workspace<float> memory(workspace::ssd_summary(cut, n, p), stream, op);
  const ssd::Summaries pieces{memory.data(), memory.data() + cut.heads() * cut.pieces * n * p, cut.pieces};
  ssd::summarise_pieces(cut, a.dt, a.a_log, {{a.q, a.dy, pieces, 0, cut.pieces, /*are_gradients=*/true}},
                        stream, op);
  ssd::pass_pieces(cut, n, p,
                   {{.pieces = pieces,
                     .backwards = true,
                     .decays_after = strided<const float>(a.log_decay),
                     .out = strided<float>(a.dstate_in)}},
                   stream, op);
}

}  // namespace transmamba::cuda
