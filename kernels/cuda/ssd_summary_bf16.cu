// Segment summaries in bfloat16: of the pieces that other kernels cut a sequence in, and the op itself.
#include "kernels/cuda/ssd_bf16.cuh"

namespace transmamba::cuda {
namespace ssd {
namespace {

/// The state that a piece adds, sum_s weight_s x_s z_s^T. Of states, x = k, z = v, and weights reach from a
/// token to the piece's end; of their gradients, x = q, z = dy, and weights reach from the piece's start.
struct Job {
  InRows x, z;
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
constexpr std::size_t summary_shared() {
  return 2 * (Tile<kTokens, N>::kBytes + Tile<kTokens, P>::kBytes + sizeof(Steps));
}

/// A block a piece, a warp 16 rows of the state (n, p); while a chunk is multiplied the next one is copied.
/// From a piece's end to its start: what was read last is still near when a scan reads it again, first.
template <int N, int P>
__global__ void __launch_bounds__(N * 2) summarise(const __grid_constant__ SummaryArguments a) {
  extern __shared__ __align__(16) char shared[];
  using X = Tile<kTokens, N>;
  constexpr int kThreadsOf = N * 2;
  using Z = Tile<kTokens, P>;
  const Job& job = a.jobs[blockIdx.y];
  if (static_cast<std::int64_t>(blockIdx.x) >= a.cut.heads() * job.count) return;
  const std::int64_t head = blockIdx.x / job.count, b = head / a.cut.h, h = head % a.cut.h;
  const int piece = job.first + static_cast<int>(blockIdx.x % job.count),
            warp = static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t begin = static_cast<std::int64_t>(piece) * a.cut.per_piece,
                     end = min(a.cut.chunks, begin + a.cut.per_piece);
  const int count = static_cast<int>(end - begin);
  const auto chunk = [&](int i) { return end - 1 - i; };
  const auto x_tile = [&](int i) { return X{reinterpret_cast<bf16*>(shared + i % 2 * X::kBytes)}; };
  const auto z_tile = [&](int i) {
    return Z{reinterpret_cast<bf16*>(shared + 2 * X::kBytes + i % 2 * Z::kBytes)};
  };
  Steps* const steps = reinterpret_cast<Steps*>(shared + 2 * (X::kBytes + Z::kBytes));
  const float rate = -expf(a.a_log[h]) * kLog2e;

  const auto start = [&](int i) {
    if (i < count) {
      const std::int64_t first = chunk(i) * kTokens;
      x_tile(i).template start_copy<kThreadsOf>(job.x.row(b, first, h), job.x.token, a.cut.t - first);
      z_tile(i).template start_copy<kThreadsOf>(job.z.row(b, first, h), job.z.token, a.cut.t - first);
    }
    commit_copies();
  };
  StepReader reader(a.dt, b, h, a.cut.t);
  float log_decay = 0;  // of chunks so far
  if (warp == 0) reader.fetch(chunk(0));
  start(0);
  Slice<P> state;
  state.fill(0);
  for (int i = 0; i < count; ++i) {
    Steps& now = steps[i % 2];
    if (warp == 0) {
      reader.put(now, rate, job.gradients ? 0 : log_decay);
      if (i + 1 < count) reader.fetch(chunk(i + 1));
    }
    wait_copies<0>();
    __syncthreads();
    start(i + 1);
    log_decay += now.cum[kTokens - 1];
    update_state(state, job.gradients ? exp2f(now.cum[kTokens - 1]) : 1, x_tile(i), 16 * warp,
                 job.gradients ? now.from_start : now.weight, z_tile(i));
  }
  float* const out = job.out.of(job.out.state, head, piece, N * P);
  state.each([&](int row, int column, float value) { out[(16 * warp + row) * P + column] = value; });
  if (threadIdx.x == 0) *job.out.of(job.out.log_decay, head, piece, 1) = log_decay;
}

}  // namespace

void summarise_pieces(const Cut& cut, const ConstView& k, const ConstView& v, const ConstView& q,
                      const ConstView& dy, const ConstView& dt, const ConstView& a_log, bool with_last,
                      const Summaries& states, const Summaries& gradients, const Stream& stream,
                      std::string_view op) {
  SummaryArguments arguments{{}, strided<const float>(dt), a_log.ptr<float>(), cut};
  arguments.jobs[0] = {
      InRows(k, op, "k"), InRows(v, op, "v"), states, 0, cut.pieces - (with_last ? 0 : 1), false};
  if (q) arguments.jobs[1] = {InRows(q, op, "q"), InRows(dy, op, "dy"), gradients, 1, cut.pieces - 1, true};
  const std::int64_t blocks = cut.heads() * std::max(arguments.jobs[0].count, arguments.jobs[1].count);
  with_widths(k.dim(3), v.dim(3), op, [&](auto n, auto p) {
    launch(op, stream, {blocks, n * 2, summary_shared<n, p>(), q ? 2 : 1}, summarise<n, p>, arguments);
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
  const std::int64_t count = cut.heads() * cut.pieces;
  const Workspace<float> memory(workspace::ssd_summary(cut, n, p), stream, op);
  const ssd::Summaries pieces{memory.data(), memory.data() + count * n * p, cut.pieces};
  ssd::summarise_pieces(cut, a.k, a.v, {}, {}, a.dt, a.a_log, true, pieces, {}, stream, op);
  launch(op, stream, {cut.heads(), kThreads, 0, (n * p + kThreads - 1) / kThreads}, ssd::combine_pieces,
         pieces, strided<const float>(a.state_in), strided<float>(a.state_out), strided<float>(a.log_decay),
         cut.h, n, p);
}

}  // namespace transmamba::cuda
