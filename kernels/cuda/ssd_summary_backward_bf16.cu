// Gradients of a segment summary in bfloat16: the Memory Converter's backward pass.
//
// The gradient of the state after token s is that of the state at the end, times the decay from s to there.
// So chunks do not depend on each other, and those whose decay is zero in float32 cost next to nothing:
//   f_s = exp(A sum_{r>s} dt_r),  dK_s += dt_s f_s H v_s,  dV_s += dt_s f_s H^T k_s,  z_s = f_s k_s . H v_s,
//   da_r = sum_{s<r} dt_s z_s + exp(A sum dt) <H, S_in> + dlog_decay,   ddt_r += A da_r + z_r.
#include "kernels/cuda/ssd_bf16.cuh"

namespace transmamba::cuda {
namespace ssd {
namespace {

struct Arguments {
  InRows k, v;
  OutRows dk, dv;
  Strided<const float> dt, state_in, dstate_out, dlog_decay;
  Strided<float> ddt, dstate_in;
  const float* a_log;
  float* product;  // (b h, chunks 64) z
  float* decay;    // (b h, chunks) A sum dt of each chunk, in powers of two
  float* halves;   // (b h, 2 chunks) sum dt z of each half of a chunk
  float* inner;    // (b h) <H, S_in>
  float* drate;    // (b h, groups)
  std::int64_t n, p;
  Cut cut;
};

/// Of `count` numbers, by a block.
__device__ float sum_of(const float* x, std::int64_t count) {
  float sum = 0;
  for (std::int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += x[i];
  return block_reduce<Plus>(sum);
}

constexpr int kWarpsOfBlock = kThreads / kWarp;

/// A warp a chunk: its decay. A last block of each head: <H, S_in>.
__global__ void decays(const __grid_constant__ Arguments a) {
  const std::int64_t blocks = gridDim.x / a.cut.heads(), head = blockIdx.x / blocks,
                     part = blockIdx.x % blocks;
  const std::int64_t b = head / a.cut.h, h = head % a.cut.h;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  if (part == blocks - 1) {
    float inner = 0;
    for (std::int64_t n = warp; a.state_in.data && n < a.n; n += kWarpsOfBlock)
      for (std::int64_t p = lane; p < a.p; p += kWarp)
        inner += a.dstate_out(b, h, n)[p] * a.state_in(b, h, n)[p];
    inner = block_reduce<Plus>(inner);
    if (threadIdx.x == 0) a.inner[head] = inner;
    return;
  }
  const std::int64_t chunk = part * kWarpsOfBlock + warp;
  if (chunk >= a.cut.chunks) return;
  float sum = 0;
  for (std::int64_t t = chunk * kTokens + lane; t < min(a.cut.t, (chunk + 1) * kTokens); t += kWarp)
    sum += a.dt(b, t)[h];
  sum = warp_reduce<Plus>(sum);
  if (lane == 0) a.decay[head * a.cut.chunks + chunk] = -expf(a.a_log[h]) * kLog2e * sum;
}

template <int N, int P>
struct Shared {
  using K = Tile<kTokens, N>;
  using V = Tile<kTokens, P>;
  using H = Tile<N, P>;
  static constexpr int kStage = K::kBytes + V::kBytes, kTiles = 2 * kStage + H::kBytes;
  struct Numbers {
    Steps steps[2];
    float factor[kTokens];
    float sums[P / 16][kTokens];
  };
  static constexpr std::size_t kBytes = kTiles + sizeof(Numbers);
  char* base;
  __device__ K k(int i) const { return {reinterpret_cast<bf16*>(base + i % 2 * kStage)}; }
  __device__ V v(int i) const { return {reinterpret_cast<bf16*>(base + i % 2 * kStage + K::kBytes)}; }
  __device__ H gradient() const { return {reinterpret_cast<bf16*>(base + 2 * kStage)}; }
  __device__ Numbers& numbers() const { return *reinterpret_cast<Numbers*>(base + kTiles); }
};

/// out += dt_s x_s of 64 tokens and 16 columns.
__device__ void add_columns(bf16* out, std::int64_t stride, std::int64_t left, const Columns& x,
                            const float* dt) {
  const int g = static_cast<int>(threadIdx.x) % kWarp / 4, c = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int j = 0; j < kTokens / 16; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 16 * j + g + 8 * half;
      if (row >= left) continue;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        std::uint32_t* const at = reinterpret_cast<std::uint32_t*>(out + row * stride + 8 * i + c);
        const float2 old = unpack(*at);
        *at = pack(old.x + dt[row] * x[j][i][2 * half], old.y + dt[row] * x[j][i][2 * half + 1]);
      }
    }
}

/// A block a piece. A warp has 16 columns of v, and every so many of k.
template <int N, int P>
__global__ void __launch_bounds__(P * 2) chunks(const __grid_constant__ Arguments a) {
  extern __shared__ __align__(16) char shared[];
  const Shared<N, P> s{shared};
  constexpr int kThreadsOf = P * 2;
  constexpr int kWarps = P / 16;
  const std::int64_t head = blockIdx.x / a.cut.pieces, b = head / a.cut.h, h = head % a.cut.h;
  const int piece = static_cast<int>(blockIdx.x % a.cut.pieces), warp = static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t begin = static_cast<std::int64_t>(piece) * a.cut.per_piece,
                     end = min(a.cut.chunks, begin + a.cut.per_piece);
  const float rate = -expf(a.a_log[h]) * kLog2e;
  const int count = static_cast<int>(end - begin);

  const auto start = [&](int i) {
    if (i < count) {
      const std::int64_t first = (end - 1 - i) * kTokens;
      s.k(i).template start_copy<kThreadsOf>(a.k.row(b, first, h), a.k.token, a.cut.t - first);
      s.v(i).template start_copy<kThreadsOf>(a.v.row(b, first, h), a.v.token, a.cut.t - first);
    }
    commit_copies();
  };
  StepReader reader(a.dt, b, h, a.cut.t);
  if (warp == 0) reader.fetch(end - 1);
  start(0);
  for (int i = static_cast<int>(threadIdx.x); i < N * P / 2; i += static_cast<int>(blockDim.x)) {
    const int n = i / (P / 2), p = i % (P / 2) * 2;
    const float* const row = a.dstate_out(b, h, n);
    s.gradient().set(n, p, row[p], row[p + 1]);
  }
  // From the last chunk of the piece to its first: once nothing is left of the gradient, nothing comes back.
  float later = sum_of(a.decay + head * a.cut.chunks + end, a.cut.chunks - end);
  for (int i = 0; i < count; ++i) {
    const std::int64_t chunk = end - 1 - i, first = chunk * kTokens, left = a.cut.t - first;
    if (exp2f(later) == 0) {
      wait_copies<0>();
      float *const product = a.product + head * a.cut.chunks * kTokens, *const halves =
                                                                            a.halves +
                                                                            head * a.cut.chunks * 2;
      for (std::int64_t t = begin * kTokens + threadIdx.x; t < first + kTokens; t += blockDim.x)
        product[t] = 0;
      for (std::int64_t j = 2 * begin + threadIdx.x; j < 2 * (chunk + 1); j += blockDim.x) halves[j] = 0;
      return;
    }
    auto& numbers = s.numbers();
    Steps& now = numbers.steps[i % 2];
    if (warp == 0) {
      reader.put(now, rate);
      if (i + 1 < count) reader.fetch(chunk - 1);
      __syncwarp();
      for (int t = static_cast<int>(threadIdx.x); t < kTokens; t += kWarp)
        numbers.factor[t] = exp2f(later) * now.to_end[t];
    }
    wait_copies<0>();
    __syncthreads();
    start(i + 1);
    {
      Columns dv = {};
      tokens_times<N / 16>(dv, s.k(i), [&](int step, std::uint32_t(&right)[4]) {
        s.gradient().load_b(right, 16 * step, 16 * warp);
      });
      scale_rows(dv, numbers.factor);
      dot_rows(dv, s.v(i), 16 * warp, numbers.sums[warp]);
      add_columns(a.dv.row(b, first, h) + 16 * warp, a.dv.token, left, dv, now.dt);
    }
    for (int from = 16 * warp; from < N; from += 16 * kWarps) {
      Columns dk = {};
      tokens_times<P / 16>(dk, s.v(i), [&](int step, std::uint32_t(&right)[4]) {
        s.gradient().load_b_transposed(right, from, 16 * step);
      });
      scale_rows(dk, numbers.factor);
      add_columns(a.dk.row(b, first, h) + from, a.dk.token, left, dk, now.dt);
    }
    __syncthreads();
    if (threadIdx.x < kTokens) {
      const int t = static_cast<int>(threadIdx.x);
      float sum = 0;
      for (int i_ = 0; i_ < kWarps; ++i_) sum += numbers.sums[i_][t];
      a.product[(head * a.cut.chunks + chunk) * kTokens + t] = sum;
      const float half = warp_reduce<Plus>(now.dt[t] * sum);
      if (t % kWarp == 0) a.halves[(head * a.cut.chunks + chunk) * 2 + warp] = half;
    }
    later += now.cum[kTokens - 1];
  }
}

constexpr int kEach = 4;  // tokens in a row of a thread
constexpr std::int64_t kGroup = workspace::kSummaryTokens;
static_assert(kGroup == kEach * kThreads && kGroup % (kTokens / 2) == 0);

/// A block kGroup tokens of a head: the gradients of their step sizes, in order of time. All of a head share
/// the rows of the entering state's.
__global__ void finish(const __grid_constant__ Arguments a) {
  __shared__ float warps[kWarpsOfBlock];
  const std::int64_t groups = gridDim.x / a.cut.heads(), head = blockIdx.x / groups,
                     group = blockIdx.x % groups;
  const std::int64_t b = head / a.cut.h, h = head % a.cut.h;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const float rate = -expf(a.a_log[h]);
  const float* const product = a.product + head * a.cut.chunks * kTokens;
  float before = a.dlog_decay.data ? a.dlog_decay(b)[h] : 0.f;
  if (a.state_in.data || a.dstate_in.data) {
    const float whole = exp2f(sum_of(a.decay + head * a.cut.chunks, a.cut.chunks));
    before += whole * a.inner[head];
    for (std::int64_t n = group * kWarpsOfBlock + warp; a.dstate_in.data && n < a.n;
         n += groups * kWarpsOfBlock)
      for (std::int64_t p = lane; p < a.p; p += kWarp)
        a.dstate_in(b, h, n)[p] = whole * a.dstate_out(b, h, n)[p];
  }
  before += sum_of(a.halves + head * a.cut.chunks * 2, group * kGroup / (kTokens / 2));
  const std::int64_t t = group * kGroup + kEach * threadIdx.x;
  float dt[kEach], z[kEach], own = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    dt[i] = t + i < a.cut.t ? a.dt(b, t + i)[h] : 0.f, z[i] = t + i < a.cut.t ? product[t + i] : 0.f;
    own += dt[i] * z[i];
  }
  float sum = own;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const float other = __shfl_up_sync(0xffffffffu, sum, distance);
    if (lane >= distance) sum += other;
  }
  if (lane == kWarp - 1) warps[warp] = sum;
  __syncthreads();
  for (int i = 0; i < warp; ++i) before += warps[i];
  float da = before + sum - own, drate = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (t + i < a.cut.t) a.ddt(b, t + i)[h] += rate * da + z[i];
    drate += da * dt[i];
    da += dt[i] * z[i];
  }
  drate = block_reduce<Plus>(drate);
  if (threadIdx.x == 0) a.drate[head * groups + group] = rate * drate;
}

/// A warp a head.
__global__ void add_over_sequences(const float* drate, float* da_log, Cut cut, std::int64_t groups) {
  add_parts(da_log, drate, cut, groups);
}

}  // namespace
}  // namespace ssd

void ssd_summary_backward_bf16(const SsdSummaryBackward& a, const Stream& stream) {
  constexpr auto op = "ssd_summary_backward";
  const std::int64_t n = a.k.dim(3), p = a.v.dim(3);
  const ssd::Cut cut(a.k.dim(0), a.k.dim(1), a.k.dim(2));
  const std::int64_t heads = cut.heads();
  if (heads == 0) return;
  const std::int64_t chunks = heads * cut.chunks, groups = workspace::summary_groups(cut);
  const Workspace<float> memory(workspace::ssd_summary_backward(cut), stream, op);
  float* at = memory.data();
  const auto take = [&](std::int64_t size) { return std::exchange(at, at + size); };
  const ssd::Arguments arguments{ssd::InRows(a.k, op, "k"),
                                 ssd::InRows(a.v, op, "v"),
                                 ssd::OutRows(a.dk, op, "dk"),
                                 ssd::OutRows(a.dv, op, "dv"),
                                 strided<const float>(a.dt),
                                 strided<const float>(a.state_in),
                                 strided<const float>(a.dstate_out),
                                 strided<const float>(a.dlog_decay),
                                 strided<float>(a.ddt),
                                 strided<float>(a.dstate_in),
                                 a.a_log.ptr<float>(),
                                 take(chunks * ssd::kTokens),
                                 take(chunks),
                                 take(2 * chunks),
                                 take(heads),
                                 take(heads * groups),
                                 n,
                                 p,
                                 cut};
  const std::int64_t blocks = (cut.chunks + ssd::kWarpsOfBlock - 1) / ssd::kWarpsOfBlock;
  launch(op, stream, {heads * (blocks + 1)}, ssd::decays, arguments);
  ssd::with_widths(n, p, op, [&](auto n_, auto p_) {
    launch(op, stream, {heads * cut.pieces, p_ * 2, ssd::Shared<n_, p_>::kBytes}, ssd::chunks<n_, p_>,
           arguments);
  });
  launch(op, stream, {heads * groups}, ssd::finish, arguments);
  launch(op, stream, {cut.h, kWarp}, ssd::add_over_sequences, arguments.drate, a.da_log.ptr<float>(), cut,
         groups);
}

}  // namespace transmamba::cuda
