// A block owns a tile of channels, in whole heads, and walks a run of tokens: groups of them come through a
// ring in shared memory while earlier ones are worked on. A thread owns kPack channels, and for RoPE those
// half a head further, with the window of the convolution in registers: everything is read once.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cmath>

#include "kernels/cuda/partials.cuh"
#include "kernels/cuda/qkv_conv.cuh"
#include "kernels/cuda/vectors.cuh"

namespace transmamba::cuda::walk {

constexpr int kWidth = 4, kBefore = kWidth - 1;  // of the convolution
constexpr int kGroup = 4;                        // tokens that come together, and slots of a window of them
constexpr int kChunk = 32;                       // tokens after which angles are taken anew
constexpr int kPack = 2;                         // channels that follow each other
constexpr int kCopy = 8;                         // channels that are copied together
constexpr int kTile = 768;                       // channels of a block, at most
constexpr int kTileThreads = kTile / (2 * kPack);
// Multiprocessors of a Hopper GPU, which work is cut for on any GPU: runs are part of the result's bits.
constexpr int kSms = 132;
using Packed = Pack<bfloat16, kPack>;
static_assert(kGroup == kWidth);

struct Problem {
  Strided<const bfloat16> x, halo;
  const float *weight, *bias;
  std::int64_t weight_pitch;
  std::int64_t t, length, runs;  // of a sequence
  std::int64_t rotated, position;
  double fall;                        // a pair's frequency is 2^-fall times that of the pair before
  int c, qk, n;                       // q and k together have `qk` channels
  int turning, tiles;                 // tiles of q and k, and of all channels
  int turning_width, straight_width;  // channels of a tile of q and k, and of one of v

  /// `blocks` are at once on a multiprocessor: one wave of them, each with a run long enough for what it
  /// reads twice not to count.
  template <class Arguments>
  Problem(const Arguments& a, int blocks)
      : x(strided<const bfloat16>(a.x)),
        halo(strided<const bfloat16>(a.halo)),
        weight(a.weight.template ptr<float>()),
        bias(a.bias.template ptr<float>()),
        weight_pitch(a.weight.stride(0)),
        t(a.x.dim(1)),
        rotated(a.rotated),
        position(a.position),
        fall(std::log2(a.theta) / static_cast<double>(a.qk_width / 2)),
        c(static_cast<int>(a.x.dim(2))),
        qk(static_cast<int>(2 * a.heads * a.qk_width)),
        n(static_cast<int>(a.qk_width)) {
    const auto cut = [](std::int64_t size, std::int64_t pieces) { return (size + pieces - 1) / pieces; };
    const std::int64_t heads = 2 * a.heads, v = (c - qk) / kCopy;
    turning = static_cast<int>(cut(heads, kTile / n));
    const std::int64_t straight = cut(v, kTile / kCopy);
    tiles = turning + static_cast<int>(straight);
    turning_width = static_cast<int>(cut(heads, turning) * n);
    straight_width = straight > 0 ? static_cast<int>(cut(v, straight) * kCopy) : 0;
    const std::int64_t most = std::max<std::int64_t>(1, blocks * kSms / (tiles * a.x.dim(0)));
    length = std::max<std::int64_t>(kChunk, cut(cut(t, most), kGroup) * kGroup);
    runs = std::max<std::int64_t>(1, cut(t, length));
  }
  template <class Ring>
  Grid grid(std::int64_t b) const {
    const int threads = std::max(turning_width, straight_width) / (2 * kPack);
    const std::size_t frequencies = rotated > 0 ? static_cast<std::size_t>(n / 2) * sizeof(double) : 0;
    return {tiles * b * runs, (threads + kWarp - 1) / kWarp * kWarp, Ring::kBytes + frequencies};
  }
};

/// What a block and a thread work on: channels [a, a + kPack) and [b, b + kPack) of `count` tokens. Tokens
/// are counted from the run's first.
struct Place {
  std::int64_t i, row, begin;  // `row` counts runs of all sequences
  int count, sequence_end;     // tokens of the run, and of what is left of the sequence
  int rotated;                 // tokens that RoPE turns, in that
  int first, width;            // channels of the block
  int a, b;                    // of the thread, from `first`
  bool any, is_k;              // whether there are some, and they are of k

  __device__ explicit Place(const Problem& p) {
    const unsigned rows = gridDim.x / static_cast<unsigned>(p.tiles);
    const int tile = static_cast<int>(blockIdx.x / rows), straight = tile - p.turning;
    row = blockIdx.x % rows;
    i = row / p.runs;
    // Blocks of one multiprocessor are some tiles apart. Not all of them are to have tokens that RoPE turns.
    const std::int64_t run = (row + tile * p.runs / p.tiles) % p.runs;
    row = i * p.runs + run, begin = run * p.length;
    sequence_end = static_cast<int>(p.t - begin);
    count = static_cast<int>(min(p.length, p.t - begin));
    const bool is_v = straight >= 0;
    first = is_v ? p.qk + straight * p.straight_width : tile * p.turning_width;
    width = is_v ? min(p.straight_width, p.c - first) : min(p.turning_width, p.qk - first);
    const int span = is_v ? width : p.n, units = span / (2 * kPack), unit = static_cast<int>(threadIdx.x);
    any = unit < width / (2 * kPack);
    a = any ? unit / units * span + unit % units * kPack : 0;
    b = a + span / 2;
    rotated = is_v ? 0 : static_cast<int>(max(p.rotated - begin, std::int64_t{0}));
    is_k = !is_v && first + a >= p.qk / 2;
  }
};

/// Groups of tokens in shared memory, kAhead of them on their way.
template <int kStreams, int kStages>
struct Ring {
  static constexpr int kToken = kStreams * kTile, kAhead = kStages - 1;
  static constexpr std::size_t kBytes = sizeof(bfloat16) * kStages * kGroup * kToken;
  static constexpr int kRows = kCopy / (2 * kPack);  // tokens that the block's threads copy at once
  bfloat16 *slots, *copied;
  int stage = 0;    // that is worked on
  int row, column;  // what this thread copies: every kRows-th token's channels [column, column + kCopy)

  __device__ Ring(char* shared, const Place& at) : slots(reinterpret_cast<bfloat16*>(shared)) {
    const int columns = at.width / kCopy, unit = static_cast<int>(threadIdx.x);
    row = unit / columns, column = unit % columns * kCopy;
    copied = slots + row * kToken + column;
  }
  __device__ Packed read(int m, int stream, int channel) const {
    return load_pack<kPack>(static_cast<const bfloat16*>(slots) + stage * kGroup * kToken + channel +
                            m * kToken + stream * kTile);
  }
  /// The next of this thread's tokens of a stream into stage `to`; `left` tokens are left.
  __device__ void fetch(int to, int stream, const bfloat16*& from, std::int64_t stride, int left) const {
    bfloat16* const slot = copied + to * kGroup * kToken;
#pragma unroll
    for (int m = 0; m < kGroup; m += kRows, from += kRows * stride)
      if (m + row < left)
        __pipeline_memcpy_async(slot + m * kToken + stream * kTile, from, kCopy * sizeof(bfloat16));
  }
  /// Waits for the oldest group; afterwards the stage that `next` returns is free. The whole block calls
  /// them.
  __device__ void wait() const {
    __pipeline_wait_prior(kAhead - 1);
    __syncthreads();
  }
  __device__ int next() const { return stage > 0 ? stage - 1 : kAhead; }
  __device__ void advance() { stage = stage < kAhead ? stage + 1 : 0; }
};

/// Sines and cosines of a thread's pairs, of one token after the other. A step is a rotation; every kChunk
/// tokens they are taken anew, so that their error stays below 1e-5.
struct Angles {
  const double* frequencies;  // turns a token, of the block's pairs, in shared memory
  float cosine[kPack], sine[kPack], step_cosine[kPack], step_sine[kPack];

  /// The whole block calls this.
  __device__ Angles(const Problem& p, const Place& at, char* shared) {
    if (at.rotated == 0) return;
    double* const all = reinterpret_cast<double*>(shared);
    frequencies = all + at.a % p.n;
    const int half = p.n / 2;
    for (int k = static_cast<int>(threadIdx.x); k < half; k += static_cast<int>(blockDim.x))
      all[k] = exp2(-k * p.fall) * 0.15915494309189535;  // 1 / (2 pi)
    __syncthreads();
    for (int e = 0; e < kPack; ++e) take(1, e, step_cosine, step_sine);
  }
  __device__ void start(std::int64_t position) {
#pragma unroll
    for (int e = 0; e < kPack; ++e) take(static_cast<double>(position), e, cosine, sine);
  }
  __device__ void step() {
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
      const float c = cosine[e], s = sine[e];
      cosine[e] = c * step_cosine[e] - s * step_sine[e];
      sine[e] = s * step_cosine[e] + c * step_sine[e];
    }
  }

 private:
  /// Whole turns are taken out in float64: positions are large.
  __device__ void take(double tokens, int e, float (&c)[kPack], float (&s)[kPack]) const {
    const double turns = tokens * frequencies[e];
    sincospif(static_cast<float>(2 * (turns - rint(turns))), &s[e], &c[e]);
  }
};

/// kPack channels' weights, and the last inputs: that of token m of a group is in slot m.
struct Channels {
  float weight[kPack][kWidth], bias[kPack], x[kGroup][kPack];

  __device__ Channels(const Problem& p, const Place& at, int channel) {
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
      const auto row = load_pack<kWidth>(p.weight + (channel + e) * p.weight_pitch);
      bias[e] = p.bias[channel + e];
#pragma unroll
      for (int j = 0; j < kWidth; ++j) weight[e][j] = row[j];
    }
#pragma unroll
    for (int j = 0; j < kBefore; ++j) {
      const std::int64_t time = at.begin - kBefore + j;
      Packed input = {};
      if (time >= 0)
        input = load_pack<kPack>(p.x(at.i, time) + channel);
      else if (p.halo.data)
        input = load_pack<kPack>(p.halo(at.i, kBefore + time) + channel);
      take(1 + j, input);
    }
  }
  __device__ void take(int slot, const Packed& pack) {
#pragma unroll
    for (int e = 0; e < kPack; ++e) x[slot][e] = pack[e];
  }
  /// The input of window place j for token m.
  __device__ float input(int m, int j, int e) const { return x[(m + 1 + j) % kGroup][e]; }
  /// The pre-activation of token m.
  __device__ float pre(int m, int e) const {
    float sum = bias[e];
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum += weight[e][j] * input(m, j, e);
    return sum;
  }
};

/// What RoPE does to a group of tokens, where that is known when the kernel is compiled.
enum class Turn { none, all, kept, some };  // kept: k stays, its turned copy is another tensor

template <class Arguments>
bool fits(const Arguments& a) {
  const std::int64_t n = a.qk_width, v = a.x.dim(2) - 2 * a.heads * n;
  return a.x.dtype() == DType::bf16 && a.weight.dim(1) == kWidth && n % 8 == 0 && v % 8 == 0 && n <= 512 &&
         n > 0 && a.x.dim(1) < 1 << 30 && a.x.dim(2) < 1 << 24 && in_packs(a.x, kCopy) &&
         in_packs(a.halo, kPack) && in_packs(a.weight, kWidth);
}

}  // namespace transmamba::cuda::walk
