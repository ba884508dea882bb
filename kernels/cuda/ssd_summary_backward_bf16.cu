// Gradients of a segment summary in bfloat16: the Memory Converter's backward pass.
//
// The gradient of the state after token s is that of the state at the end, times the decay from s to there.
// So chunks do not depend on each other, and those whose decay is zero in float32 cost nothing:
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
  float* tail;     // (b h, chunks + 1) log decay from each chunk's start to the end, in powers of two
  float* product;  // (b h, chunks 64) z
  float* drate;    // (b h)
  std::int64_t n, p;
  Cut cut;
};

/// A block a head: the decays of its chunks, then from the end of the sequence.
__global__ void __launch_bounds__(1024) tails(const __grid_constant__ Arguments a) {
  const std::int64_t head = blockIdx.x, b = head / a.cut.h, h = head % a.cut.h, chunks = a.cut.chunks;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const float rate = -expf(a.a_log[h]) * kLog2e;
  float* const tail = a.tail + head * (chunks + 1);
  for (std::int64_t chunk = warp; chunk < chunks; chunk += blockDim.x / kWarp) {
    float sum = 0;
    for (std::int64_t t = chunk * kTokens + lane; t < min(a.cut.t, (chunk + 1) * kTokens); t += kWarp)
      sum += a.dt(b, t)[h];
    sum = warp_reduce<Plus>(sum);
    if (lane == 0) tail[chunk] = rate * sum;
  }
  __syncthreads();
  if (warp > 0) return;
  float after = 0;
  for (std::int64_t end = chunks; end > 0; end -= kWarp) {
    const std::int64_t chunk = end - 1 - lane;
    float sum = chunk >= 0 ? tail[chunk] : 0.f;
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const float later = __shfl_up_sync(0xffffffffu, sum, distance);
      if (lane >= distance) sum += later;
    }
    if (chunk >= 0) tail[chunk] = after + sum;
    after += __shfl_sync(0xffffffffu, sum, kWarp - 1);
  }
  if (lane == 0) tail[chunks] = 0;
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
  const float* const tail = a.tail + head * (a.cut.chunks + 1);

  // From the last chunk of the piece to its first: once nothing is left of the gradient, nothing comes back.
  int count = 0;
  while (count < end - begin && exp2f(tail[end - count]) > 0) ++count;
  for (std::int64_t at = begin * kTokens + threadIdx.x; at < (end - count) * kTokens; at += blockDim.x)
    a.product[head * a.cut.chunks * kTokens + at] = 0;
  if (count == 0) return;

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
  for (int i = 0; i < count; ++i) {
    const std::int64_t chunk = end - 1 - i, first = chunk * kTokens, left = a.cut.t - first;
    auto& numbers = s.numbers();
    Steps& now = numbers.steps[i % 2];
    if (warp == 0) {
      reader.put(now, rate);
      if (i + 1 < count) reader.fetch(chunk - 1);
      __syncwarp();
      const float later = exp2f(tail[chunk + 1]);
      for (int t = static_cast<int>(threadIdx.x); t < kTokens; t += kWarp)
        numbers.factor[t] = later * now.to_end[t];
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
    for (int t = static_cast<int>(threadIdx.x); t < kTokens; t += static_cast<int>(blockDim.x)) {
      float sum = 0;
      for (int i_ = 0; i_ < kWarps; ++i_) sum += numbers.sums[i_][t];
      a.product[(head * a.cut.chunks + chunk) * kTokens + t] = sum;
    }
  }
}

/// A block a head: the gradients of its step sizes, in order of time, and of the entering state.
__global__ void __launch_bounds__(1024) finish(const __grid_constant__ Arguments a) {
  constexpr int kEach = 4;  // tokens in a row of a thread
  __shared__ float warps[kWarp];
  const std::int64_t head = blockIdx.x, b = head / a.cut.h, h = head % a.cut.h;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const float rate = -expf(a.a_log[h]), whole = exp2f(a.tail[head * (a.cut.chunks + 1)]);
  const float* const product = a.product + head * a.cut.chunks * kTokens;
  float inner = 0;
  for (std::int64_t i = threadIdx.x; i < a.n * a.p; i += blockDim.x) {
    const float gradient = a.dstate_out(b, h, i / a.p)[i % a.p];
    if (a.state_in.data) inner += gradient * a.state_in(b, h, i / a.p)[i % a.p];
    if (a.dstate_in.data) a.dstate_in(b, h, i / a.p)[i % a.p] = whole * gradient;
  }
  float before = whole * block_reduce<Plus>(inner) + (a.dlog_decay.data ? a.dlog_decay(b)[h] : 0.f),
        drate = 0;
  for (std::int64_t first = 0; first < a.cut.t; first += kEach * blockDim.x) {
    const std::int64_t t = first + kEach * threadIdx.x;
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
    float earlier = 0, all = 0;
    for (int i = 0; i < static_cast<int>(blockDim.x) / kWarp; ++i) {
      if (i < warp) earlier += warps[i];
      all += warps[i];
    }
    __syncthreads();
    float da = before + earlier + sum - own;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (t + i < a.cut.t) a.ddt(b, t + i)[h] += rate * da + z[i];
      drate += da * dt[i];
      da += dt[i] * z[i];
    }
    before += all;
  }
  drate = block_reduce<Plus>(drate);
  if (threadIdx.x == 0) a.drate[head] = rate * drate;
}

__global__ void add_over_sequences(const float* drate, float* da_log, Cut cut) {
  const std::int64_t h = global_index();
  if (h >= cut.h) return;
  float sum = 0;
  for (std::int64_t b = 0; b < cut.b; ++b) sum += drate[b * cut.h + h];
  da_log[h] += sum;
}

}  // namespace
}  // namespace ssd

void ssd_summary_backward_bf16(const SsdSummaryBackward& a, const Stream& stream) {
  constexpr auto op = "ssd_summary_backward";
  const std::int64_t n = a.k.dim(3), p = a.v.dim(3);
  const ssd::Cut cut(a.k.dim(0), a.k.dim(1), a.k.dim(2));
  const std::int64_t heads = cut.heads();
  if (heads == 0) return;
  const std::int64_t tails = heads * (cut.chunks + 1), tokens = heads * cut.chunks * ssd::kTokens;
  const Workspace<float> memory(workspace::ssd_summary_backward(cut), stream, op);
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
                                 memory.data(),
                                 memory.data() + tails,
                                 memory.data() + tails + tokens,
                                 n,
                                 p,
                                 cut};
  launch(op, stream, {heads, 1024}, ssd::tails, arguments);
  ssd::with_widths(n, p, op, [&](auto n_, auto p_) {
    launch(op, stream, {heads * cut.pieces, p_ * 2, ssd::Shared<n_, p_>::kBytes}, ssd::chunks<n_, p_>,
           arguments);
  });
  launch(op, stream, {heads, 1024}, ssd::finish, arguments);
  launch(op, stream, thread_each(cut.h), ssd::add_over_sequences, arguments.drate, a.da_log.ptr<float>(),
         cut);
}

}  // namespace transmamba::cuda
