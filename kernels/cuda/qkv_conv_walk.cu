#include "kernels/cuda/qkv_conv_walk.cuh"

namespace transmamba::cuda {
namespace {

using namespace walk;  // NOLINT

constexpr int kTile = 128;  // threads of a block, at most
using ForwardRing = Ring<2, kTile>;

__global__ void __launch_bounds__(kTile, 4)
    forward(const __grid_constant__ Problem p, const __grid_constant__ Strided<bfloat16> y,
            const __grid_constant__ Strided<bfloat16> k_rotated) {
  extern __shared__ __align__(16) char shared[];
  const ForwardRing ring(shared);
  const Place at(p);
  const Angles angles(p, shared + ForwardRing::kBytes);
  const bfloat16 *x_a = p.x(at.i, at.begin) + at.a, *x_b = p.x(at.i, at.begin) + at.b;
  const auto fetch = [&](std::int64_t time, int group) {
    const auto each = [&](int m) {
      ring.fetch(group, m, 0, x_a), ring.fetch(group, m, 1, x_b);
      x_a += p.x.stride[1], x_b += p.x.stride[1];
    };
    for_each_token(at.any ? at.end - time : 0, each);
    __pipeline_commit();
  };
  fetch(at.begin, 0);
  const int channel_a = at.any ? at.a : 0, channel_b = at.any ? at.b : 0;
  Channels a(p, at.i, at.begin, channel_a), b(p, at.i, at.begin, channel_b);
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
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        const float left = a.pre(m, e), right = b.pre(m, e);
        u[e] = left * sigmoid_for<bfloat16>(left), v[e] = right * sigmoid_for<bfloat16>(right);
      }
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

}  // namespace

bool can_walk(const QkvConv& a) { return fits(a) && in_packs(a.y, 4) && in_packs(a.k_rotated, 4); }

void qkv_conv_walk(const QkvConv& a, const Stream& stream) {
  Problem p(a, run_length(a.x, 256));
  const Grid grid = p.cut(a.x.dim(0), kTile, ForwardRing::kBytes);
  launch("qkv_conv", stream, grid, forward, p, strided<bfloat16>(a.y), strided<bfloat16>(a.k_rotated));
}

}  // namespace transmamba::cuda
