// A thread owns four channels, and for RoPE those half a head further, and walks a run of tokens with the
// window of the convolution in registers: everything is read once. What it reads comes through shared memory,
// a group of tokens ahead. A block's threads share a run, and the sines and cosines of its tokens, a chunk at
// a time.
#pragma once

#include <cuda_pipeline_primitives.h>

#include "kernels/cuda/partials.cuh"
#include "kernels/cuda/qkv_conv.cuh"
#include "kernels/cuda/vectors.cuh"

namespace transmamba::cuda::walk {

constexpr int kWidth = 4, kBefore = kWidth - 1;  // of the convolution
constexpr int kGroup = 4;                        // tokens read at a time
constexpr int kChunk = 32;                       // tokens whose angles are there at a time
constexpr int kPack = 4;                         // channels that follow each other
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
  static constexpr std::size_t kBytes = 2 * kGroup * kStreams * kTile * sizeof(Packed);
  Packed* first;
  __device__ explicit Ring(char* shared) : first(reinterpret_cast<Packed*>(shared) + threadIdx.x) {}
  __device__ Packed* at(int group, int m, int stream) const {
    return first + ((group * kGroup + m) * kStreams + stream) * kTile;
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
__device__ inline Packed input(const Problem& p, std::int64_t i, std::int64_t time, int at) {
  if (time >= 0) return load_pack<kPack>(p.x(i, time) + at);
  if (p.halo.data) return load_pack<kPack>(p.halo(i, kBefore + time) + at);
  return {};
}

/// Four channels' weights, and the last inputs.
struct Channels {
  float weight[kPack][kWidth], bias[kPack], x[kBefore + kGroup][kPack];

  __device__ Channels(const Problem& p, std::int64_t i, std::int64_t begin, int at) {
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
      const auto row = load_pack<kWidth>(p.weight + (at + e) * p.weight_pitch);
      bias[e] = p.bias[at + e];
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

/// Tokens of a run: chunks enough for about `runs` of them.
inline std::int64_t run_length(const ConstView& x, std::int64_t runs) {
  return kChunk * std::max<std::int64_t>(1, x.dim(0) * x.dim(1) / (runs * kChunk));
}

template <class Arguments>
bool fits(const Arguments& a) {
  const std::int64_t n = a.qk_width, v = a.x.dim(2) - 2 * a.heads * n;
  return a.x.dtype() == DType::bf16 && a.weight.dim(1) == kWidth && n % 8 == 0 && v % 8 == 0 && n <= 512 &&
         a.x.dim(2) < 1 << 24 && in_packs(a.x, kPack) && in_packs(a.halo, kPack) &&
         in_packs(a.weight, kWidth);
}

}  // namespace transmamba::cuda::walk
