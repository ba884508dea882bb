#include "kernels/cuda/qkv_conv_walk.cuh"

namespace transmamba::cuda {
namespace {

using namespace walk;  // NOLINT

constexpr int kBlocks = 4;  // at once on a multiprocessor
using ForwardRing = Ring<1, 4>;

__global__ void __launch_bounds__(kTileThreads, kBlocks)
    forward(const __grid_constant__ Problem p, const __grid_constant__ Strided<bfloat16> y,
            const __grid_constant__ Strided<bfloat16> k_rotated) {
  extern __shared__ __align__(16) char shared[];
  const Place at(p);
  ForwardRing ring(shared, at);
  const bfloat16* x = p.x(at.i, at.begin + ring.row) + at.first + ring.column;
  const auto fetch = [&](int time, int stage) {
    if (at.any) ring.fetch(stage, 0, x, p.x.stride[1], at.count - time);
    __pipeline_commit();
  };
  for (int ahead = 0; ahead < ForwardRing::kAhead; ++ahead) fetch(ahead * kGroup, ahead);
  Angles angles(p, at, shared + ForwardRing::kBytes);
  Channels a(p, at, at.first + at.a), b(p, at, at.first + at.b);
  const bool keeps_k = at.rotated > 0 && at.is_k && k_rotated.data;
  bfloat16* row = y(at.i, at.begin) + at.first;
  bfloat16* k_row = nullptr;
  if (keeps_k) k_row = k_rotated(at.i, at.begin, (at.first + at.a - p.qk / 2) / p.n) + at.a % p.n - at.a;
  const auto compute = [&](int time, auto is_whole, auto turn) {
    constexpr bool whole = decltype(is_whole)::value;
    constexpr Turn kTurn = decltype(turn)::value;
#pragma unroll
    for (int m = 0; m < kGroup; ++m) {
      if (!whole && time + m >= at.count) break;
      a.take(m, ring.read(m, 0, at.a)), b.take(m, ring.read(m, 0, at.b));
      float u[kPack], v[kPack];
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        const float of_a = a.pre(m, e), of_b = b.pre(m, e);
        u[e] = of_a * sigmoid_for<bfloat16>(of_a), v[e] = of_b * sigmoid_for<bfloat16>(of_b);
      }
      const auto put = [&](bfloat16* to) { store_pack(to + at.a, u), store_pack(to + at.b, v); };
      const auto turned = [&] {
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
          const float left = u[e], right = v[e], c = angles.cosine[e], s = angles.sine[e];
          u[e] = left * c - right * s, v[e] = right * c + left * s;
        }
        angles.step();
      };
      const bool turns = kTurn == Turn::some ? time + m < at.rotated : kTurn != Turn::none;
      const bool kept = kTurn == Turn::some ? turns && keeps_k : kTurn == Turn::kept;
      if (kept) put(row + m * y.stride[1]);
      if (turns) turned();
      put(kept ? k_row + m * k_rotated.stride[1] : row + m * y.stride[1]);
    }
    row += kGroup * y.stride[1];
    if (kTurn == Turn::some || kTurn == Turn::kept) k_row += kGroup * k_rotated.stride[1];
  };
  for (int time = 0; time < at.count; time += kGroup, ring.advance()) {
    ring.wait();
    fetch(time + ForwardRing::kAhead * kGroup, ring.next());
    if (!at.any) continue;
    const bool turns = time < at.rotated;
    if (turns && time % kChunk == 0) angles.start(p.position + at.begin + time);
    if (time + kGroup > at.count || (turns && time + kGroup > at.rotated))
      compute(time, std::false_type{}, std::integral_constant<Turn, Turn::some>{});
    else if (!turns)
      compute(time, std::true_type{}, std::integral_constant<Turn, Turn::none>{});
    else if (keeps_k)
      compute(time, std::true_type{}, std::integral_constant<Turn, Turn::kept>{});
    else
      compute(time, std::true_type{}, std::integral_constant<Turn, Turn::all>{});
  }
}

}  // namespace

bool can_walk(const QkvConv& a) { return fits(a) && in_packs(a.y, kPack) && in_packs(a.k_rotated, kPack); }

void qkv_conv_walk(const QkvConv& a, const Stream& stream) {
  const Problem p(a, kBlocks);
  launch("qkv_conv", stream, p.grid<ForwardRing>(a.x.dim(0)), forward, p, strided<bfloat16>(a.y),
         strided<bfloat16>(a.k_rotated));
}

}  // namespace transmamba::cuda
