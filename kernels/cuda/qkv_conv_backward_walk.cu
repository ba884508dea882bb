#include "kernels/cuda/qkv_conv_walk.cuh"

namespace transmamba::cuda {
namespace {

using namespace walk;  // NOLINT

constexpr int kBlocks = 2;        // at once on a multiprocessor
using BackwardRing = Ring<3, 3>;  // x, dy and dk_rotated

struct Gradients {
  Strided<const bfloat16> dy, dk_rotated;
  Strided<bfloat16> dx, dhalo;
  float* partials;  // (run, w + 1, c): dweight and dbias of a run
};

/// The last gradients of kPack channels' pre-activations, token m's in slot m, and sums over tokens.
struct ChannelGradients {
  float d[kGroup][kPack] = {}, dweight[kPack][kWidth] = {}, dbias[kPack] = {};

  __device__ void add(int m, const Channels& inputs) {
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
      dbias[e] += d[m][e];
#pragma unroll
      for (int j = 0; j < kWidth; ++j) dweight[e][j] += d[m][e] * inputs.input(m, j, e);
    }
  }
  /// dx_s = sum_j weight_j d_{s+w-1-j}, of the token kBefore before token m.
  __device__ void store_dx(int m, const Channels& inputs, bfloat16* dx) const {
    float out[kPack];
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
      out[e] = 0;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) out[e] += inputs.weight[e][j] * d[(m + kGroup - j) % kGroup][e];
    }
    store_pack(dx, out);
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

/// A run's dx needs the gradients of the kBefore tokens after it too: those two runs compute.
__global__ void __launch_bounds__(kTileThreads, kBlocks)
    backward(const __grid_constant__ Problem p, const __grid_constant__ Gradients g) {
  extern __shared__ __align__(16) char shared[];
  const Place at(p);
  BackwardRing ring(shared, at);
  const int last = at.count + kBefore, read = min(at.sequence_end, last), read_k = min(read, at.rotated);
  const int channel = at.first + ring.column, key = channel - p.qk / 2;  // what this thread copies
  const bool has_dk = g.dk_rotated.data && at.rotated > 0, takes_dk = has_dk && at.is_k;
  const bool copies_dk = at.any && has_dk && key >= 0;
  const bfloat16* x = p.x(at.i, at.begin + ring.row) + channel;
  const bfloat16* dy = g.dy(at.i, at.begin + ring.row) + channel;
  const bfloat16* dk = copies_dk ? g.dk_rotated(at.i, at.begin + ring.row, key / p.n) + key % p.n : nullptr;
  const auto fetch = [&](int time, int stage) {
    if (at.any) {
      ring.fetch(stage, 0, x, p.x.stride[1], read - time);
      ring.fetch(stage, 1, dy, g.dy.stride[1], read - time);
    }
    if (copies_dk) ring.fetch(stage, 2, dk, g.dk_rotated.stride[1], read_k - time);
    __pipeline_commit();
  };
  for (int ahead = 0; ahead < BackwardRing::kAhead; ++ahead) fetch(ahead * kGroup, ahead);
  Angles angles(p, at, shared + BackwardRing::kBytes);
  Channels a(p, at, at.first + at.a), b(p, at, at.first + at.b);
  ChannelGradients da, db;
  bfloat16* dx = g.dx(at.i, at.begin) - kBefore * g.dx.stride[1] + at.first;
  /// Four tokens: `whole` if all of them and those whose dx they complete are this run's.
  const auto compute = [&](int time, auto is_whole, auto turn) {
    constexpr bool whole = decltype(is_whole)::value;
    constexpr Turn kTurn = decltype(turn)::value;
#pragma unroll
    for (int m = 0; m < kGroup; ++m) {
      const bool there = whole || time + m < read;
      const auto read_of = [&](int stream, int where) {
        return there ? ring.read(m, stream, where) : Packed{};
      };
      a.take(m, read_of(0, at.a)), b.take(m, read_of(0, at.b));
      const Packed left = read_of(1, at.a), right = read_of(1, at.b);
      float u[kPack], v[kPack];
#pragma unroll
      for (int e = 0; e < kPack; ++e) u[e] = left[e], v[e] = right[e];
      const auto turn_back = [&](bool kept) {
        const Packed dk_a = ring.read(m, 2, at.a), dk_b = ring.read(m, 2, at.b);
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
          const float c = angles.cosine[e], s = angles.sine[e];
          const float from_a = kept ? dk_a[e] : u[e], from_b = kept ? dk_b[e] : v[e];
          u[e] = (kept ? u[e] : 0.0f) + from_a * c + from_b * s;
          v[e] = (kept ? v[e] : 0.0f) + from_b * c - from_a * s;
        }
        angles.step();
      };
      if constexpr (kTurn == Turn::some) {
        if (time + m < at.rotated) turn_back(takes_dk);
      } else if constexpr (kTurn != Turn::none) {
        turn_back(kTurn == Turn::kept);
      }
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        const float of_a = a.pre(m, e), of_b = b.pre(m, e);
        da.d[m][e] = u[e] * silu_gradient_for<bfloat16>(of_a, sigmoid_for<bfloat16>(of_a));
        db.d[m][e] = v[e] * silu_gradient_for<bfloat16>(of_b, sigmoid_for<bfloat16>(of_b));
      }
      if (whole || time + m < at.count) da.add(m, a), db.add(m, b);
      const int before = time + m - kBefore;
      if (!whole && (before >= at.count || (before < 0 && (at.begin > 0 || !g.dhalo.data)))) continue;
      bfloat16* row = dx + m * g.dx.stride[1];
      if (!whole && before < 0) row = g.dhalo(at.i, before + kBefore) + at.first;
      da.store_dx(m, a, row + at.a), db.store_dx(m, b, row + at.b);
    }
    dx += kGroup * g.dx.stride[1];
  };
  for (int time = 0; time < last; time += kGroup, ring.advance()) {
    ring.wait();
    fetch(time + BackwardRing::kAhead * kGroup, ring.next());
    if (!at.any) continue;
    const bool turns = time < at.rotated;
    if (turns && time % kChunk == 0) angles.start(p.position + at.begin + time);
    if (time < kBefore || time + kGroup > at.count || (turns && time + kGroup > at.rotated))
      compute(time, std::false_type{}, std::integral_constant<Turn, Turn::some>{});
    else if (!turns)
      compute(time, std::true_type{}, std::integral_constant<Turn, Turn::none>{});
    else if (takes_dk)
      compute(time, std::true_type{}, std::integral_constant<Turn, Turn::kept>{});
    else
      compute(time, std::true_type{}, std::integral_constant<Turn, Turn::all>{});
  }
  if (!at.any) return;
  float* const partial = g.partials + at.row * (kWidth + 1) * p.c + at.first;
  da.store_sums(partial + at.a, p.c), db.store_sums(partial + at.b, p.c);
}

}  // namespace

bool can_walk(const QkvConvBackward& a) {
  return fits(a) && in_packs(a.dy, kCopy) && in_packs(a.dk_rotated, kCopy) && in_packs(a.dx, kPack) &&
         in_packs(a.dhalo, kPack);
}

void qkv_conv_backward_walk(const QkvConvBackward& a, const Stream& stream) {
  constexpr auto op = "qkv_conv_backward";
  const std::int64_t b = a.x.dim(0), c = a.x.dim(2), pitch = (kWidth + 1) * c;
  const Problem p(a, kBlocks);
  const Workspace<float> partials(b * p.runs * pitch, stream, op);
  const Gradients gradients{strided<const bfloat16>(a.dy), strided<const bfloat16>(a.dk_rotated),
                            strided<bfloat16>(a.dx), strided<bfloat16>(a.dhalo), partials.data()};
  launch(op, stream, p.grid<BackwardRing>(b), backward, p, gradients);
  launch_add_partials<float, float>(op, stream, partials.data(), b * p.runs, pitch,
                                    {a.dweight.ptr<float>(), kWidth * c, c, 1, a.dweight.stride(0)},
                                    {a.dbias.ptr<float>(), c, c, 0, 1});
}

}  // namespace transmamba::cuda
