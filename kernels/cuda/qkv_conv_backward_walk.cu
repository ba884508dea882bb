#include "kernels/cuda/qkv_conv_walk.cuh"

namespace transmamba::cuda {
namespace {

using namespace walk;  // NOLINT

constexpr int kTile = 128;  // threads of a block, at most

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

using BackwardRing = Ring<6, kTile>;  // x, dy and dk_rotated

/// A run's dx needs the gradients of the kBefore tokens after it too: those two runs compute. Two blocks a
/// multiprocessor leave registers for everything; with three, what spills costs twice the time.
__global__ void __launch_bounds__(kTile, 2)
    backward(const __grid_constant__ Problem p, const __grid_constant__ Gradients g) {
  extern __shared__ __align__(16) char shared[];
  const BackwardRing ring(shared);
  const Place at(p);
  const Angles angles(p, shared + BackwardRing::kBytes);
  const int pair = at.pair(p), half = p.n / 2, head = at.a / p.n - p.qk / 2 / p.n;
  const bool takes_dk = at.turns && at.is_k && g.dk_rotated.data;
  const bfloat16 *x_a = p.x(at.i, at.begin) + at.a, *x_b = p.x(at.i, at.begin) + at.b;
  const bfloat16 *dy_a = g.dy(at.i, at.begin) + at.a, *dy_b = g.dy(at.i, at.begin) + at.b;
  const bfloat16* dk = takes_dk ? g.dk_rotated(at.i, at.begin, head) + pair : nullptr;
  const std::int64_t read_end = min(p.t, at.end + kBefore);
  const auto fetch = [&](std::int64_t time, int group) {
    const auto each = [&](int m) {
      ring.fetch(group, m, 0, x_a), ring.fetch(group, m, 1, x_b);
      ring.fetch(group, m, 2, dy_a), ring.fetch(group, m, 3, dy_b);
      x_a += p.x.stride[1], x_b += p.x.stride[1];
      dy_a += g.dy.stride[1], dy_b += g.dy.stride[1];
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
  Channels a(p, at.i, at.begin, channel_a), b(p, at.i, at.begin, channel_b);
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
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        const float left = a.pre(m, e), right = b.pre(m, e);
        const float slope_a = silu_gradient_for<bfloat16>(left, sigmoid_for<bfloat16>(left));
        const float slope_b = silu_gradient_for<bfloat16>(right, sigmoid_for<bfloat16>(right));
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

}  // namespace

bool can_walk(const QkvConvBackward& a) {
  return fits(a) && in_packs(a.dy, 4) && in_packs(a.dk_rotated, 4) && in_packs(a.dx, 4) &&
         in_packs(a.dhalo, 4);
}

void qkv_conv_backward_walk(const QkvConvBackward& a, const Stream& stream) {
  constexpr auto op = "qkv_conv_backward";
  const std::int64_t b = a.x.dim(0), c = a.x.dim(2), pitch = (kWidth + 1) * c;
  Problem p(a, run_length(a.x, 128));  // longer: a run makes a row of partial sums
  const Grid grid = p.cut(b, kTile, BackwardRing::kBytes);
  const Workspace<float> partials(b * p.runs * pitch, stream, op);
  const Gradients gradients{strided<const bfloat16>(a.dy), strided<const bfloat16>(a.dk_rotated),
                            strided<bfloat16>(a.dx), strided<bfloat16>(a.dhalo), partials.data()};
  launch(op, stream, grid, backward, p, gradients);
  launch_add_partials<float, float>(op, stream, partials.data(), b * p.runs, pitch,
                                    {a.dweight.ptr<float>(), kWidth * c, c, 1, a.dweight.stride(0)},
                                    {a.dbias.ptr<float>(), c, c, 0, 1});
}

}  // namespace transmamba::cuda
