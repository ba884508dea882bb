// A thread owns four channels, and for RoPE those half a head further, and walks a run of tokens with the
// window of the convolution in registers: everything is read once. What it reads comes through shared memory,
// a group of tokens ahead. A block's threads share a run, and the sines and cosines of its tokens, a chunk at
// a time.
#include <cuda_pipeline_primitives.h>

#include "kernels/cuda/partials.cuh"
#include "kernels/cuda/qkv_conv.cuh"
#include "kernels/cuda/vectors.cuh"

namespace transmamba::cuda {
namespace {

constexpr int kWidth = 4, kBefore = kWidth - 1;         // of the convolution
constexpr int kGroup = 4;                               // tokens read at a time
constexpr int kChunk = 32;                              // tokens whose angles are there at a time
constexpr int kPack = 4;                                // channels that follow each other
constexpr int kForwardTile = 128, kBackwardTile = 192;  // threads of a block, at most
using Packed = Pack<bfloat16, kPack>;

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
  /// Every channel has a thread, and threads own 2 * kPack of them. Blocks have `tile` of them at most;
  /// `rings` is bytes of shared memory.
  Grid cut(std::int64_t b, int tile, std::size_t rings) {
    const int threads = c / (2 * kPack);
    tiles = (threads + tile - 1) / tile;
    const int block = ((threads + tiles - 1) / tiles + kWarp - 1) / kWarp * kWarp;
    const std::size_t angles = rotated > 0 ? kChunk * n * sizeof(float) + n / 2 * sizeof(double) : 0;
    return {b * runs * tiles, block, rings + angles};
  }
};

/// What this thread reads of two groups of tokens, one of them on its way. Nobody else sees it.
template <int kStreams, int kTile>
struct Ring {
  static constexpr std::size_t kRing = 2 * kGroup * kStreams * kTile * sizeof(Packed);
  static constexpr std::size_t kBytes = kRing + 2 * kTile * sizeof(Pack<float, kPack>);
  Packed* first;
  __device__ explicit Ring(char* shared) : first(reinterpret_cast<Packed*>(shared) + threadIdx.x) {}
  __device__ Packed* at(int group, int m, int stream) const {
    return first + ((group * kGroup + m) * kStreams + stream) * kTile;
  }
  /// Room for the biases of this thread's first and second channels.
  __device__ static Pack<float, kPack>* biases(char* shared, int which) {
    return reinterpret_cast<Pack<float, kPack>*>(shared + kRing) + which * kTile + threadIdx.x;
  }
  __device__ void fetch(int group, int m, int stream, const bfloat16* from) const {
    __pipeline_memcpy_async(at(group, m, stream), from, sizeof(Packed));
  }
};

/// What a block and a thread work on: channels [a, a + kPack) and [b, b + kPack) of tokens [begin, end).
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
    const int turning = p.qk / (2 * kPack), per_head = p.n / (2 * kPack);
    any = unit < p.c / (2 * kPack);
    turns = unit < turning && p.rotated > begin;
    block_turns = first < turning && p.rotated > begin;
    if (unit < turning) {
      a = unit / per_head * p.n + unit % per_head * kPack;
      b = a + p.n / 2;
    } else {
      a = p.qk + (unit - turning) * kPack;
      b = a + (p.c - p.qk) / 2;
    }
    is_k = unit < turning && a >= p.qk / 2;
  }
  /// Where this thread's pair begins in a head.
  __device__ int pair(const Problem& p) const { return a % p.n; }
};

/// Sines and cosines of up to kChunk tokens, in shared memory: (token, 2, n / 2).
struct Angles {
  double* frequencies;
  float* table;

  __device__ Angles(const Problem& p, char* shared) : frequencies(reinterpret_cast<double*>(shared)) {
    const int half = p.n / 2;
    table = reinterpret_cast<float*>(frequencies + half);
    if (p.rotated == 0) return;
    for (int k = static_cast<int>(threadIdx.x); k < half; k += static_cast<int>(blockDim.x))
      frequencies[k] = pow(p.theta, -static_cast<double>(k) / half) * 0.15915494309189535;  // 1 / (2 pi)
  }
  /// Of tokens before `end` that are rotated. The whole block calls this; what it wrote before is gone. Whole
  /// turns are taken out in float64: positions are large.
  __device__ void fill(const Problem& p, std::int64_t begin, std::int64_t end) const {
    __syncthreads();
    const int half = p.n / 2,
              tokens = static_cast<int>(min(std::int64_t{kChunk}, min(end, p.rotated) - begin));
    for (int e = static_cast<int>(threadIdx.x); e < tokens * half; e += static_cast<int>(blockDim.x)) {
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

/// The channels [at, at + kPack) of input `time`, which may lie before the first token.
__device__ Packed input(const Problem& p, std::int64_t i, std::int64_t time, int at) {
  if (time >= 0) return load_pack<kPack>(p.x(i, time) + at);
  if (p.halo.data) return load_pack<kPack>(p.halo(i, kBefore + time) + at);
  return {};
}

/// Four channels' weights, and the last inputs.
struct Channels {
  float weight[kPack][kWidth], x[kBefore + kGroup][kPack];
  Pack<float, kPack>* bias;  // in shared memory: registers are short

  __device__ Channels(const Problem& p, std::int64_t i, std::int64_t begin, int at, Pack<float, kPack>* room)
      : bias(room) {
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
      const auto row = load_pack<kWidth>(p.weight + (at + e) * p.weight_pitch);
      bias->values[e] = p.bias[at + e];
#pragma unroll
      for (int j = 0; j < kWidth; ++j) weight[e][j] = row[j];
    }
#pragma unroll
    for (int j = 0; j < kBefore; ++j) take(j, input(p, i, begin - kBefore + j, at));
  }
  __device__ void take(int slot, const Packed& pack) {
#pragma unroll
    for (int e = 0; e < kPack; ++e) x[slot][e] = pack[e];
  }
  /// The pre-activations of token m of the group.
  __device__ void pre(int m, float (&out)[kPack]) const {
    const Pack<float, kPack> start = *bias;
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
      out[e] = start[e];
#pragma unroll
      for (int j = 0; j < kWidth; ++j) out[e] += weight[e][j] * x[m + j][e];
    }
  }
  __device__ void next_group() {
#pragma unroll
    for (int j = 0; j < kBefore; ++j)
#pragma unroll
      for (int e = 0; e < kPack; ++e) x[j][e] = x[kGroup + j][e];
  }
};

/// f(m) for the tokens of a group, of which `left` are left.
template <class F>
__device__ void for_each_token(std::int64_t left, F&& f) {
  if (left >= kGroup) {
#pragma unroll
    for (int m = 0; m < kGroup; ++m) f(m);
  } else {
#pragma unroll
    for (int m = 0; m < kGroup - 1; ++m)
      if (m < left) f(m);
  }
}

using ForwardRing = Ring<2, kForwardTile>;

__global__ void __launch_bounds__(kForwardTile, 4)
    forward(const __grid_constant__ Problem p, const __grid_constant__ Strided<bfloat16> y,
            const __grid_constant__ Strided<bfloat16> k_rotated) {
  extern __shared__ __align__(16) char shared[];
  const ForwardRing ring(shared);
  const Place at(p);
  const Angles angles(p, shared + ForwardRing::kBytes);
  const bfloat16* x = p.x(at.i, at.begin) + at.a;
  const int further = at.b - at.a;
  const auto fetch = [&](std::int64_t time, int group) {
    const auto each = [&](int m) {
      ring.fetch(group, m, 0, x), ring.fetch(group, m, 1, x + further);
      x += p.x.stride[1];
    };
    for_each_token(at.any ? at.end - time : 0, each);
    __pipeline_commit();
  };
  fetch(at.begin, 0);
  const int channel_a = at.any ? at.a : 0, channel_b = at.any ? at.b : 0;
  Channels a(p, at.i, at.begin, channel_a, ForwardRing::biases(shared, 0));
  Channels b(p, at.i, at.begin, channel_b, ForwardRing::biases(shared, 1));
  const int pair = at.pair(p), half = p.n / 2, head = at.a / p.n - p.qk / 2 / p.n;
  const bool keeps_k = at.is_k && k_rotated.data;
  bfloat16* row = y(at.i, at.begin);
  const auto compute = [&](std::int64_t time, int group, const float* table, auto all) {
    constexpr bool whole = decltype(all)::value;
#pragma unroll
    for (int m = 0; m < kGroup; ++m) {
      if (!whole && time + m >= at.end) break;
      a.take(kBefore + m, *ring.at(group, m, 0)), b.take(kBefore + m, *ring.at(group, m, 1));
      float u[kPack], v[kPack];
      a.pre(m, u), b.pre(m, v);
#pragma unroll
      for (int e = 0; e < kPack; ++e)
        u[e] *= sigmoid_for<bfloat16>(u[e]), v[e] *= sigmoid_for<bfloat16>(v[e]);
      bfloat16* const to = row + m * y.stride[1];
      bfloat16 *to_a = to + at.a, *to_b = to + at.b;
      if (at.turns && time + m < p.rotated) {
        if (keeps_k) {
          store_pack(to_a, u), store_pack(to_b, v);
          to_a = k_rotated(at.i, time + m, head) + pair, to_b = to_a + half;
        }
        const auto cosine = load_pack<kPack>(table + m * p.n),
                   sine = load_pack<kPack>(table + m * p.n + half);
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
          const float left = u[e], right = v[e];
          u[e] = left * cosine[e] - right * sine[e], v[e] = right * cosine[e] + left * sine[e];
        }
      }
      store_pack(to_a, u), store_pack(to_b, v);
    }
    row += kGroup * y.stride[1];
    a.next_group(), b.next_group();
  };
  int group = 0;
  for (std::int64_t chunk = at.begin; chunk < at.end; chunk += kChunk) {
    if (at.block_turns && chunk < p.rotated) angles.fill(p, chunk, at.end);
    if (!at.any) continue;
    const float* table = angles.table + pair;
    for (std::int64_t time = chunk; time < min(at.end, chunk + kChunk); time += kGroup, group ^= 1) {
      fetch(time + kGroup, group ^ 1);
      __pipeline_wait_prior(1);
      if (time + kGroup <= at.end)
        compute(time, group, table, std::true_type{});
      else
        compute(time, group, table, std::false_type{});
      table += kGroup * p.n;
    }
  }
}

struct Gradients {
  Strided<const bfloat16> dy, dk_rotated;
  Strided<bfloat16> dx, dhalo;
  float* partials;  // (run, w + 1, c): dweight and dbias of a run
};

/// The last gradients of four channels' pre-activations, and sums over tokens.
struct ChannelGradients {
  float d[kBefore + kGroup][kPack] = {}, dweight[kPack][kWidth] = {}, dbias[kPack] = {};

  __device__ void add(int m, const Channels& inputs) {
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
      dbias[e] += d[kBefore + m][e];
#pragma unroll
      for (int j = 0; j < kWidth; ++j) dweight[e][j] += d[kBefore + m][e] * inputs.x[m + j][e];
    }
  }
  /// dx_s = sum_j weight_j d_{s+w-1-j}, of the token kBefore before token m of the group.
  __device__ void store_dx(int m, const Channels& inputs, bfloat16* dx) const {
    float out[kPack];
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
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
      for (int e = 0; e < kPack; ++e) d[j][e] = d[kGroup + j][e];
  }
  __device__ void store_sums(float* partial, int c) const {
#pragma unroll
    for (int j = 0; j <= kWidth; ++j) {
      float out[kPack];
#pragma unroll
      for (int e = 0; e < kPack; ++e) out[e] = j < kWidth ? dweight[e][j < kWidth ? j : 0] : dbias[e];
      store_pack(partial + static_cast<std::int64_t>(j) * c, out);
    }
  }
};

using BackwardRing = Ring<6, kBackwardTile>;  // x, dy and dk_rotated

/// A run's dx needs the gradients of the kBefore tokens after it too: those two runs compute.
__global__ void __launch_bounds__(kBackwardTile, 2)
    backward(const __grid_constant__ Problem p, const __grid_constant__ Gradients g) {
  extern __shared__ __align__(16) char shared[];
  const BackwardRing ring(shared);
  const Place at(p);
  const Angles angles(p, shared + BackwardRing::kBytes);
  const int pair = at.pair(p), half = p.n / 2, head = at.a / p.n - p.qk / 2 / p.n;
  const bool takes_dk = at.turns && at.is_k && g.dk_rotated.data;
  const bfloat16* x = p.x(at.i, at.begin) + at.a;
  const int further = at.b - at.a;
  const bfloat16* dy = g.dy(at.i, at.begin) + at.a;
  const bfloat16* dk = takes_dk ? g.dk_rotated(at.i, at.begin, head) + pair : nullptr;
  const std::int64_t read_end = min(p.t, at.end + kBefore);
  const auto fetch = [&](std::int64_t time, int group) {
    const auto each = [&](int m) {
      ring.fetch(group, m, 0, x), ring.fetch(group, m, 1, x + further);
      ring.fetch(group, m, 2, dy), ring.fetch(group, m, 3, dy + further);
      x += p.x.stride[1];
      dy += g.dy.stride[1];
    };
    for_each_token(at.any ? read_end - time : 0, each);
    const auto each_dk = [&](int m) {
      ring.fetch(group, m, 4, dk), ring.fetch(group, m, 5, dk + half);
      dk += g.dk_rotated.stride[1];
    };
    if (takes_dk) for_each_token(min(read_end, p.rotated) - time, each_dk);
    __pipeline_commit();
  };
  fetch(at.begin, 0);
  const int channel_a = at.any ? at.a : 0, channel_b = at.any ? at.b : 0;
  Channels a(p, at.i, at.begin, channel_a, BackwardRing::biases(shared, 0));
  Channels b(p, at.i, at.begin, channel_b, BackwardRing::biases(shared, 1));
  ChannelGradients da, db;
  bfloat16* dx = g.dx(at.i, at.begin) - kBefore * g.dx.stride[1];
  const auto compute = [&](std::int64_t time, int group, const float* table, auto all) {
    constexpr bool whole = decltype(all)::value;
#pragma unroll
    for (int m = 0; m < kGroup; ++m) {
      const bool token = whole || time + m < p.t;
      float u[kPack] = {}, v[kPack] = {};
      if (token) {
        a.take(kBefore + m, *ring.at(group, m, 0)), b.take(kBefore + m, *ring.at(group, m, 1));
        const Packed left = *ring.at(group, m, 2), right = *ring.at(group, m, 3);
#pragma unroll
        for (int e = 0; e < kPack; ++e) u[e] = left[e], v[e] = right[e];
      }
      if (at.turns && time + m < p.rotated) {
        const auto cosine = load_pack<kPack>(table + m * p.n),
                   sine = load_pack<kPack>(table + m * p.n + half);
        if (takes_dk) {
          const Packed dk_a = *ring.at(group, m, 4), dk_b = *ring.at(group, m, 5);
#pragma unroll
          for (int e = 0; e < kPack; ++e) {
            u[e] += dk_a[e] * cosine[e] + dk_b[e] * sine[e];
            v[e] += dk_b[e] * cosine[e] - dk_a[e] * sine[e];
          }
        } else {
#pragma unroll
          for (int e = 0; e < kPack; ++e) {
            const float left = u[e], right = v[e];
            u[e] = left * cosine[e] + right * sine[e], v[e] = right * cosine[e] - left * sine[e];
          }
        }
      }
      float left[kPack], right[kPack];
      a.pre(m, left), b.pre(m, right);
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        const float slope_a = silu_gradient_for<bfloat16>(left[e], sigmoid_for<bfloat16>(left[e]));
        const float slope_b = silu_gradient_for<bfloat16>(right[e], sigmoid_for<bfloat16>(right[e]));
        da.d[kBefore + m][e] = token ? u[e] * slope_a : 0;
        db.d[kBefore + m][e] = token ? v[e] * slope_b : 0;
      }
      if (whole || time + m < at.end) da.add(m, a), db.add(m, b);
      const std::int64_t before = time + m - kBefore;
      if (!whole && (before >= at.end || (before < at.begin && (at.begin > 0 || !g.dhalo.data)))) continue;
      bfloat16* row = dx + m * g.dx.stride[1];
      if (!whole && before < 0) row = g.dhalo(at.i, before + kBefore);
      da.store_dx(m, a, row + at.a), db.store_dx(m, b, row + at.b);
    }
    dx += kGroup * g.dx.stride[1];
    a.next_group(), b.next_group();
    da.next_group(), db.next_group();
  };
  const std::int64_t last = at.end + kBefore;
  int group = 0;
  for (std::int64_t chunk = at.begin; chunk < last; chunk += kChunk) {
    if (at.block_turns && chunk < p.rotated) angles.fill(p, chunk, last);
    if (!at.any) continue;
    const float* table = angles.table + pair;
    for (std::int64_t time = chunk; time < min(last, chunk + kChunk); time += kGroup, group ^= 1) {
      fetch(time + kGroup, group ^ 1);
      __pipeline_wait_prior(1);
      if (time - kBefore >= at.begin && time + kGroup <= at.end)
        compute(time, group, table, std::true_type{});
      else
        compute(time, group, table, std::false_type{});
      table += kGroup * p.n;
    }
  }
  if (!at.any) return;
  float* const partial = g.partials + (at.i * p.runs + at.run) * (kWidth + 1) * p.c;
  da.store_sums(partial + at.a, p.c), db.store_sums(partial + at.b, p.c);
}

/// Tokens of a run: chunks enough for about `runs` of them.
std::int64_t run_length(const ConstView& x, std::int64_t runs) {
  return kChunk * std::max<std::int64_t>(1, x.dim(0) * x.dim(1) / (runs * kChunk));
}

template <class Arguments>
bool fits(const Arguments& a) {
  const std::int64_t n = a.qk_width, v = a.x.dim(2) - 2 * a.heads * n;
  return a.x.dtype() == DType::bf16 && a.weight.dim(1) == kWidth && n % 8 == 0 && v % 8 == 0 && n <= 512 &&
         a.x.dim(2) < 1 << 24 && in_packs(a.x, kPack) && in_packs(a.halo, kPack) &&
         in_packs(a.weight, kWidth);
}

}  // namespace

bool can_walk(const QkvConv& a) { return fits(a) && in_packs(a.y, 4) && in_packs(a.k_rotated, 4); }

bool can_walk(const QkvConvBackward& a) {
  return fits(a) && in_packs(a.dy, 4) && in_packs(a.dk_rotated, 4) && in_packs(a.dx, 4) &&
         in_packs(a.dhalo, 4);
}

void qkv_conv_walk(const QkvConv& a, const Stream& stream) {
  Problem p(a, run_length(a.x, 256));
  const Grid grid = p.cut(a.x.dim(0), kForwardTile, ForwardRing::kBytes);
  launch("qkv_conv", stream, grid, forward, p, strided<bfloat16>(a.y), strided<bfloat16>(a.k_rotated));
}

void qkv_conv_backward_walk(const QkvConvBackward& a, const Stream& stream) {
  constexpr auto op = "qkv_conv_backward";
  const std::int64_t b = a.x.dim(0), c = a.x.dim(2), pitch = (kWidth + 1) * c;
  Problem p(a, run_length(a.x, 170));  // longer: a run makes a row of partial sums
  const Grid grid = p.cut(b, kBackwardTile, BackwardRing::kBytes);
  const Workspace<float> partials(b * p.runs * pitch, stream, op);
  const Gradients gradients{strided<const bfloat16>(a.dy), strided<const bfloat16>(a.dk_rotated),
                            strided<bfloat16>(a.dx), strided<bfloat16>(a.dhalo), partials.data()};
  launch(op, stream, grid, backward, p, gradients);
  launch_add_partials<float, float>(op, stream, partials.data(), b * p.runs, pitch,
                                    {a.dweight.ptr<float>(), kWidth * c, c, 1, a.dweight.stride(0)},
                                    {a.dbias.ptr<float>(), c, c, 0, 1});
}

}  // namespace transmamba::cuda
