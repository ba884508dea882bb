// A thread owns a few channels, and for RoPE those half a head further, and walks a run of tokens with the
// window of the convolution in registers: everything is read once. A block's threads share a run, and the
// sines and cosines of its tokens, a chunk at a time.
#include "kernels/cuda/partials.cuh"
#include "kernels/cuda/qkv_conv.cuh"
#include "kernels/cuda/vectors.cuh"

namespace transmamba::cuda {
namespace {

constexpr int kWidth = 4, kBefore = kWidth - 1;  // of the convolution
constexpr int kGroup = 4;                        // tokens read at a time
constexpr int kChunk = 32;                       // tokens whose angles are there at a time
constexpr int kForwardPack = 4, kBackwardPack = 2;

struct Problem {
  Strided<const bfloat16> x, halo;
  const float *weight, *bias;
  std::int64_t weight_pitch;
  std::int64_t t, length, runs;  // of a sequence
  std::int64_t rotated, position;
  double theta;
  int c, qk, n;  // q and k together have `qk` channels
  int tiles;     // blocks a run

  template <class Arguments>
  Problem(const Arguments& a, std::int64_t run_length)
      : x(strided<const bfloat16>(a.x)),
        halo(strided<const bfloat16>(a.halo)),
        weight(a.weight.template ptr<float>()),
        bias(a.bias.template ptr<float>()),
        weight_pitch(a.weight.stride(0)),
        t(a.x.dim(1)),
        length(run_length),
        runs(std::max<std::int64_t>(1, (t + length - 1) / length)),
        rotated(a.rotated),
        position(a.position),
        theta(a.theta),
        c(static_cast<int>(a.x.dim(2))),
        qk(static_cast<int>(2 * a.heads * a.qk_width)),
        n(static_cast<int>(a.qk_width)),
        tiles(0) {}
  /// Every channel has a thread, and threads own 2 * `pack` of them.
  Grid cut(std::int64_t b, int pack) {
    const int threads = c / (2 * pack);
    tiles = (threads + kThreads - 1) / kThreads;
    const int block = (threads + tiles - 1) / tiles;
    const std::size_t shared = rotated > 0 ? kChunk * n * sizeof(float) + n / 2 * sizeof(double) : 0;
    return {b * runs * tiles, (block + kWarp - 1) / kWarp * kWarp, shared};
  }
};

/// What a block and a thread work on: channels [a, a + P) and [b, b + P) of tokens [begin, end).
template <int P>
struct Place {
  std::int64_t i, run, begin, end;
  int a, b;
  bool any, turns, block_turns;  // whether there are channels, and RoPE turns them, or any of the block's
  bool is_k;

  __device__ explicit Place(const Problem& p) {
    const int tile = static_cast<int>(blockIdx.x % static_cast<unsigned>(p.tiles));
    const std::int64_t row = blockIdx.x / static_cast<unsigned>(p.tiles);
    i = row / p.runs, run = row % p.runs;
    begin = run * p.length, end = min(p.t, begin + p.length);
    const int first = tile * static_cast<int>(blockDim.x), unit = first + static_cast<int>(threadIdx.x);
    const int turning = p.qk / (2 * P), per_head = p.n / (2 * P);
    any = unit < p.c / (2 * P);
    turns = unit < turning && p.rotated > begin;
    block_turns = first < turning && p.rotated > begin;
    if (unit < turning) {
      a = unit / per_head * p.n + unit % per_head * P;
      b = a + p.n / 2;
    } else {
      a = p.qk + (unit - turning) * P;
      b = a + (p.c - p.qk) / 2;
    }
    is_k = unit < turning && a >= p.qk / 2;
  }
  /// Where this thread's pair begins in a head.
  __device__ int pair(const Problem& p) const { return a % p.n; }
};

/// Sines and cosines of tokens [begin, begin + kChunk), in shared memory: (token, 2, n / 2).
struct Angles {
  double* frequencies;
  float* table;

  __device__ Angles(const Problem& p, double* shared) : frequencies(shared) {
    const int half = p.n / 2;
    table = reinterpret_cast<float*>(shared + half);
    if (p.rotated == 0) return;
    for (int k = static_cast<int>(threadIdx.x); k < half; k += static_cast<int>(blockDim.x))
      frequencies[k] = pow(p.theta, -static_cast<double>(k) / half) * 0.15915494309189535;  // 1 / (2 pi)
  }
  /// The whole block calls this; what it wrote before is no longer there. Whole turns are taken out in
  /// float64: positions are large.
  __device__ void fill(const Problem& p, std::int64_t begin) const {
    __syncthreads();
    const int half = p.n / 2;
    for (int e = static_cast<int>(threadIdx.x); e < kChunk * half; e += static_cast<int>(blockDim.x)) {
      const int token = e / half, k = e % half;
      const double turns = static_cast<double>(p.position + begin + token) * frequencies[k];
      float sine, cosine;
      sincospif(static_cast<float>(2 * (turns - rint(turns))), &sine, &cosine);
      table[token * p.n + k] = cosine;
      table[token * p.n + half + k] = sine;
    }
    __syncthreads();
  }
};

/// The channels [at, at + P) of input `time`, which may lie before the first token.
template <int P>
__device__ Pack<bfloat16, P> input(const Problem& p, std::int64_t i, std::int64_t time, int at) {
  if (time >= 0) return load_pack<P>(p.x(i, time) + at);
  if (p.halo.data) return load_pack<P>(p.halo(i, kBefore + time) + at);
  return {};
}

/// P channels' weights, and the last inputs.
template <int P>
struct Channels {
  float weight[P][kWidth], bias[P], x[kBefore + kGroup][P];

  __device__ Channels(const Problem& p, std::int64_t i, std::int64_t begin, int at) {
#pragma unroll
    for (int e = 0; e < P; ++e) {
      const auto row = load_pack<kWidth>(p.weight + (at + e) * p.weight_pitch);
      bias[e] = p.bias[at + e];
#pragma unroll
      for (int j = 0; j < kWidth; ++j) weight[e][j] = row[j];
    }
#pragma unroll
    for (int j = 0; j < kBefore; ++j) take(j, input<P>(p, i, begin - kBefore + j, at));
  }
  __device__ void take(int slot, const Pack<bfloat16, P>& pack) {
#pragma unroll
    for (int e = 0; e < P; ++e) x[slot][e] = pack[e];
  }
  /// The pre-activation of token m of the group.
  __device__ float pre(int m, int e) const {
    float sum = bias[e];
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum += weight[e][j] * x[m + j][e];
    return sum;
  }
  __device__ void next_group() {
#pragma unroll
    for (int j = 0; j < kBefore; ++j)
#pragma unroll
      for (int e = 0; e < P; ++e) x[j][e] = x[kGroup + j][e];
  }
};

template <int P>
__global__ void __launch_bounds__(kThreads, 2)
    forward(Problem p, Strided<bfloat16> y, Strided<bfloat16> k_rotated) {
  extern __shared__ double shared[];
  const Place<P> at(p);
  const Angles angles(p, shared);
  if (at.block_turns) angles.fill(p, at.begin);  // a run is one chunk
  if (!at.any) return;
  Channels<P> a(p, at.i, at.begin, at.a), b(p, at.i, at.begin, at.b);
  const int pair = at.pair(p), half = p.n / 2, head = at.a / p.n - p.qk / 2 / p.n;
  const auto group = [&](std::int64_t time, auto all) {
    constexpr bool whole = decltype(all)::value;
    Pack<bfloat16, P> ahead[kGroup][2];
    const bfloat16* const x = p.x(at.i, time);
#pragma unroll
    for (int m = 0; m < kGroup; ++m)
      if (whole || time + m < at.end) {
        ahead[m][0] = load_pack<P>(x + m * p.x.stride[1] + at.a);
        ahead[m][1] = load_pack<P>(x + m * p.x.stride[1] + at.b);
      }
#pragma unroll
    for (int m = 0; m < kGroup; ++m) {
      if (!whole && time + m >= at.end) break;
      a.take(kBefore + m, ahead[m][0]), b.take(kBefore + m, ahead[m][1]);
      float u[P], v[P];
#pragma unroll
      for (int e = 0; e < P; ++e) {
        const float left = a.pre(m, e), right = b.pre(m, e);
        u[e] = left * sigmoid_for<bfloat16>(left), v[e] = right * sigmoid_for<bfloat16>(right);
      }
      bfloat16* const row = y(at.i, time + m);
      bfloat16 *to_a = row + at.a, *to_b = row + at.b;
      if (at.turns && time + m < p.rotated) {
        if (at.is_k && k_rotated.data) {
          store_pack(to_a, u), store_pack(to_b, v);
          to_a = k_rotated(at.i, time + m, head) + pair, to_b = to_a + half;
        }
        const float* const table = angles.table + (time + m - at.begin) * p.n + pair;
        const auto cosine = load_pack<P>(table), sine = load_pack<P>(table + half);
#pragma unroll
        for (int e = 0; e < P; ++e) {
          const float left = u[e], right = v[e];
          u[e] = left * cosine[e] - right * sine[e], v[e] = right * cosine[e] + left * sine[e];
        }
      }
      store_pack(to_a, u), store_pack(to_b, v);
    }
    a.next_group(), b.next_group();
  };
  std::int64_t time = at.begin;
  for (; time + kGroup <= at.end; time += kGroup) group(time, std::true_type{});
  if (time < at.end) group(time, std::false_type{});
}

struct Gradients {
  Strided<const bfloat16> dy, dk_rotated;
  Strided<bfloat16> dx, dhalo;
  float* partials;  // (run, w + 1, c): dweight and dbias of a run
};

/// The last gradients of P channels' pre-activations, and sums over tokens.
template <int P>
struct ChannelGradients {
  float d[kBefore + kGroup][P] = {}, dweight[P][kWidth] = {}, dbias[P] = {};

  __device__ void take(int m, int e, float value) { d[kBefore + m][e] = value; }
  __device__ void add(int m, const Channels<P>& inputs) {
#pragma unroll
    for (int e = 0; e < P; ++e) {
      dbias[e] += d[kBefore + m][e];
#pragma unroll
      for (int j = 0; j < kWidth; ++j) dweight[e][j] += d[kBefore + m][e] * inputs.x[m + j][e];
    }
  }
  /// dx_s = sum_j weight_j d_{s+w-1-j}, of the token kBefore before token m of the group.
  __device__ void store_dx(int m, const Channels<P>& inputs, bfloat16* dx) const {
    float out[P];
#pragma unroll
    for (int e = 0; e < P; ++e) {
      out[e] = 0;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) out[e] += inputs.weight[e][j] * d[kBefore + m - j][e];
    }
    store_pack(dx, out);
  }
  __device__ void next_group() {
#pragma unroll
    for (int j = 0; j < kBefore; ++j)
#pragma unroll
      for (int e = 0; e < P; ++e) d[j][e] = d[kGroup + j][e];
  }
  __device__ void store_sums(float* partial, int c) const {
#pragma unroll
    for (int j = 0; j <= kWidth; ++j) {
      float out[P];
#pragma unroll
      for (int e = 0; e < P; ++e) out[e] = j < kWidth ? dweight[e][j < kWidth ? j : 0] : dbias[e];
      store_pack(partial + static_cast<std::int64_t>(j) * c, out);
    }
  }
};

/// A run's dx needs the gradients of the kBefore tokens after it too: those two runs compute.
template <int P>
__global__ void __launch_bounds__(kThreads, 2) backward(Problem p, Gradients g) {
  extern __shared__ double shared[];
  const Place<P> at(p);
  const Angles angles(p, shared);
  const int channel_a = at.any ? at.a : 0, channel_b = at.any ? at.b : 0;
  Channels<P> a(p, at.i, at.begin, channel_a), b(p, at.i, at.begin, channel_b);
  ChannelGradients<P> da, db;
  const int pair = at.pair(p), half = p.n / 2, head = at.a / p.n - p.qk / 2 / p.n;
  const bool takes_dk = at.turns && at.is_k && g.dk_rotated.data;
  const auto group = [&](std::int64_t time, std::int64_t chunk, auto all) {
    constexpr bool whole = decltype(all)::value;
    Pack<bfloat16, P> x[kGroup][2], dy[kGroup][2], dk[kGroup][2];
    const bfloat16* const x_row = p.x(at.i, time);
    const bfloat16* const dy_row = g.dy(at.i, time);
#pragma unroll
    for (int m = 0; m < kGroup; ++m)
      if (whole || time + m < p.t) {
        x[m][0] = load_pack<P>(x_row + m * p.x.stride[1] + at.a);
        x[m][1] = load_pack<P>(x_row + m * p.x.stride[1] + at.b);
        dy[m][0] = load_pack<P>(dy_row + m * g.dy.stride[1] + at.a);
        dy[m][1] = load_pack<P>(dy_row + m * g.dy.stride[1] + at.b);
        if (takes_dk && time + m < p.rotated) {
          const bfloat16* const row = g.dk_rotated(at.i, time + m, head) + pair;
          dk[m][0] = load_pack<P>(row), dk[m][1] = load_pack<P>(row + half);
        }
      }
#pragma unroll
    for (int m = 0; m < kGroup; ++m) {
      const bool token = whole || time + m < p.t;
      if (token) a.take(kBefore + m, x[m][0]), b.take(kBefore + m, x[m][1]);
      float u[P], v[P];
#pragma unroll
      for (int e = 0; e < P; ++e) u[e] = token ? dy[m][0][e] : 0, v[e] = token ? dy[m][1][e] : 0;
      if (at.turns && time + m < p.rotated) {
        const float* const table = angles.table + (time + m - chunk) * p.n + pair;
        const auto cosine = load_pack<P>(table), sine = load_pack<P>(table + half);
#pragma unroll
        for (int e = 0; e < P; ++e) {
          const float left = takes_dk ? dk[m][0][e] : u[e], right = takes_dk ? dk[m][1][e] : v[e];
          u[e] = (takes_dk ? u[e] : 0) + left * cosine[e] + right * sine[e];
          v[e] = (takes_dk ? v[e] : 0) + right * cosine[e] - left * sine[e];
        }
      }
#pragma unroll
      for (int e = 0; e < P; ++e) {
        const float left = a.pre(m, e), right = b.pre(m, e);
        da.take(m, e, token ? u[e] * silu_gradient_for<bfloat16>(left, sigmoid_for<bfloat16>(left)) : 0);
        db.take(m, e, token ? v[e] * silu_gradient_for<bfloat16>(right, sigmoid_for<bfloat16>(right)) : 0);
      }
      if (whole || time + m < at.end) da.add(m, a), db.add(m, b);
      const std::int64_t before = time + m - kBefore;
      if (!whole && (before >= at.end || (before < at.begin && (at.begin > 0 || !g.dhalo.data)))) continue;
      bfloat16* const row = whole || before >= 0 ? g.dx(at.i, before) : g.dhalo(at.i, before + kBefore);
      da.store_dx(m, a, row + at.a), db.store_dx(m, b, row + at.b);
    }
    a.next_group(), b.next_group();
    da.next_group(), db.next_group();
  };
  const std::int64_t last = at.end + kBefore;
  for (std::int64_t chunk = at.begin; chunk < last; chunk += kChunk) {
    if (at.block_turns && chunk < p.rotated) angles.fill(p, chunk);
    if (!at.any) continue;
    for (std::int64_t time = chunk; time < min(last, chunk + kChunk); time += kGroup) {
      if (time - kBefore >= at.begin && time + kGroup <= at.end)
        group(time, chunk, std::true_type{});
      else
        group(time, chunk, std::false_type{});
    }
  }
  if (!at.any) return;
  float* const partial = g.partials + (at.i * p.runs + at.run) * (kWidth + 1) * p.c;
  da.store_sums(partial + at.a, p.c), db.store_sums(partial + at.b, p.c);
}

template <class Arguments>
bool fits(const Arguments& a) {
  const std::int64_t n = a.qk_width, v = a.x.dim(2) - 2 * a.heads * n;
  return a.x.dtype() == DType::bf16 && a.weight.dim(1) == kWidth && n % 8 == 0 && v % 8 == 0 && n <= 1024 &&
         a.x.dim(2) < 1 << 24 && in_packs(a.x, 4) && in_packs(a.halo, 4) && in_packs(a.weight, kWidth);
}

}  // namespace

bool can_walk(const QkvConv& a) { return fits(a) && in_packs(a.y, 4) && in_packs(a.k_rotated, 4); }

bool can_walk(const QkvConvBackward& a) {
  return fits(a) && in_packs(a.dy, 4) && in_packs(a.dk_rotated, 4) && in_packs(a.dx, 4) &&
         in_packs(a.dhalo, 4);
}

void qkv_conv_walk(const QkvConv& a, const Stream& stream) {
  Problem p(a, kChunk);
  const Grid grid = p.cut(a.x.dim(0), kForwardPack);
  launch("qkv_conv", stream, grid, forward<kForwardPack>, p, strided<bfloat16>(a.y),
         strided<bfloat16>(a.k_rotated));
}

void qkv_conv_backward_walk(const QkvConvBackward& a, const Stream& stream) {
  constexpr auto op = "qkv_conv_backward";
  constexpr std::int64_t kRuns = 128;  // about: enough blocks, and few partial sums
  const std::int64_t b = a.x.dim(0), c = a.x.dim(2);
  const std::int64_t chunks = (b * a.x.dim(1) + kRuns * kChunk - 1) / (kRuns * kChunk);
  Problem p(a, kChunk * std::max<std::int64_t>(1, chunks));
  const Grid grid = p.cut(b, kBackwardPack);
  const std::int64_t pitch = (kWidth + 1) * c;
  const Workspace<float> partials(b * p.runs * pitch, stream, op);
  const Gradients gradients{strided<const bfloat16>(a.dy), strided<const bfloat16>(a.dk_rotated),
                            strided<bfloat16>(a.dx), strided<bfloat16>(a.dhalo), partials.data()};
  launch(op, stream, grid, backward<kBackwardPack>, p, gradients);
  launch_add_partials<float, float>(op, stream, partials.data(), b * p.runs, pitch, kWidth * c,
                                    {a.dweight.ptr<float>(), c, 1, a.dweight.stride(0)});
  launch_add_partials<float, float>(op, stream, partials.data() + kWidth * c, b * p.runs, pitch, c,
                                    {a.dbias.ptr<float>(), c, 0, 1});
}

}  // namespace transmamba::cuda
