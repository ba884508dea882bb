// A team of lanes of one warp or two owns a row and holds it in registers: it is read once, and nothing waits
// for the rest of a block.
#include "kernels/cuda/partials.cuh"
#include "kernels/cuda/rms_norm.cuh"
#include "kernels/cuda/vectors.cuh"

namespace transmamba::cuda {
namespace {

constexpr int kPack = 8;
// Multiprocessors of a Hopper GPU, which a backward pass is cut for on any GPU: a block makes a row of
// partial sums, so their number is part of the result's bits, and those are not to depend on the GPU.
constexpr int kSms = 132;
using Packed = Pack<bfloat16, kPack>;

struct Problem {
  Strided<const bfloat16> dy, x, gate, dresidual;
  Strided<const float> weight;
  Strided<bfloat16> y, dx, dgate;
  std::int64_t rows, t;
  int groups, d;
  float eps;

  template <class Arguments>
  explicit Problem(const Arguments& a)
      : x(strided<const bfloat16>(a.x)),
        gate(strided<const bfloat16>(a.gate)),
        weight(strided<const float>(a.weight)),
        rows(a.x.dim(0) * a.x.dim(1) * a.x.dim(2)),
        t(a.x.dim(1)),
        groups(static_cast<int>(a.x.dim(2))),
        d(static_cast<int>(a.x.dim(3))),
        eps(static_cast<float>(a.eps)) {}
};

/// Of the row that a team holds: lane l has packs l, l + kLanes, ..., those that there are.
template <int kLanes, int kPacks>
struct Team {
  int lane, d;
  __device__ explicit Team(int width) : lane(static_cast<int>(threadIdx.x) % kLanes), d(width) {}
  __device__ int column(int n) const { return (lane + n * kLanes) * kPack; }
  __device__ bool has(int n) const { return column(n) < d; }
  __device__ void read(const bfloat16* row, Packed (&packs)[kPacks]) const {
#pragma unroll
    for (int n = 0; n < kPacks; ++n)
      if (has(n))
        packs[n] = load_pack<kPack>(row + column(n));
      else
        packs[n] = Packed{};
  }
  /// Over the team; the whole block calls it, every other time with another `turn`.
  __device__ float2 sum(float2 x, int turn) const {
#pragma unroll
    for (int distance = (kLanes < kWarp ? kLanes : kWarp) / 2; distance > 0; distance /= 2) {
      x.x += __shfl_xor_sync(0xffffffffu, x.x, distance);
      x.y += __shfl_xor_sync(0xffffffffu, x.y, distance);
    }
    if constexpr (kLanes == 2 * kWarp) {
      __shared__ float2 warps[2][kThreads / kWarp];
      const int warp = static_cast<int>(threadIdx.x) / kWarp;
      if (threadIdx.x % kWarp == 0) warps[turn][warp] = x;
      asm volatile("bar.sync %0, %1;" ::"r"(1 + warp / 2), "r"(kLanes) : "memory");
      const float2 left = warps[turn][warp & ~1], right = warps[turn][warp | 1];
      x = {left.x + right.x, left.y + right.y};
    }
    return x;
  }
};

/// A team a row.
template <int kLanes, int kPacks, bool kGated>
__global__ void __launch_bounds__(kThreads) forward(Problem p) {
  const Team<kLanes, kPacks> team(p.d);
  const std::int64_t index = global_index() / kLanes;
  const std::uint32_t row = static_cast<std::uint32_t>(min(index, p.rows - 1));
  const std::uint32_t token = row / static_cast<std::uint32_t>(p.groups), t = static_cast<std::uint32_t>(p.t);
  const std::uint32_t g = row - token * static_cast<std::uint32_t>(p.groups), i = token / t,
                      j = token - i * t;
  Packed x[kPacks], z[kPacks];
  team.read(p.x(i, j, g), x);
  if constexpr (kGated) team.read(p.gate(i, j, g), z);
  float v[kPacks][kPack], squares = 0;
#pragma unroll
  for (int n = 0; n < kPacks; ++n)
#pragma unroll
    for (int e = 0; e < kPack; ++e) {
      v[n][e] = x[n][e];
      if constexpr (kGated) v[n][e] *= z[n][e] * sigmoid_for<bfloat16>(z[n][e]);
      squares += v[n][e] * v[n][e];
    }
  const float rstd = rsqrtf(team.sum({squares, 0}, 0).x / static_cast<float>(p.d) + p.eps);
  if (index >= p.rows) return;
  bfloat16* const y = p.y(i, j, g);
#pragma unroll
  for (int n = 0; n < kPacks; ++n) {
    if (!team.has(n)) continue;
    const auto weight = load_pack<kPack>(p.weight(g) + team.column(n));
    float out[kPack];
#pragma unroll
    for (int e = 0; e < kPack; ++e) out[e] = v[n][e] * rstd * weight[e];
    store_pack(y + team.column(n), out);
  }
}

/// A team owns a group and every so many tokens, `groups_here` and the block's first group say which, and
/// keeps its sum of dweight in registers. Each element is read and written by one thread, dresidual last: dx
/// may alias what is read. With v' = v rstd and u = dy weight:  dv = rstd (u - v' mean(u v')).
template <int kLanes, int kPacks, bool kGated>
__global__ void __launch_bounds__(kThreads, kPacks == 1 ? 3 : 2)
    backward(Problem p, int groups_here, int group_tiles, std::int64_t tokens, float* partials) {
  extern __shared__ float sums[];  // (groups_here, d)
  const Team<kLanes, kPacks> team(p.d);
  const int index = static_cast<int>(threadIdx.x) / kLanes, slots = kThreads / kLanes / groups_here;
  const int slot = index / groups_here, here = index % groups_here;
  const std::int64_t run = blockIdx.x / static_cast<unsigned>(group_tiles),
                     runs = gridDim.x / static_cast<unsigned>(group_tiles);
  const int g = static_cast<int>(blockIdx.x % static_cast<unsigned>(group_tiles)) * groups_here + here;
  const bool works = slot < slots && g < p.groups;
  const float* const weight = p.weight(works ? g : 0);
  float dweight[kPacks][kPack] = {};
  int turn = 0;
  for (std::int64_t begin = run * slots; begin < tokens; begin += runs * slots) {
    const std::int64_t mine = begin + slot;
    const bool reads = works && mine < tokens;  // the others take part in the sums
    const std::uint32_t token = static_cast<std::uint32_t>(reads ? mine : 0);
    const std::uint32_t i = token / static_cast<std::uint32_t>(p.t),
                        j = token - i * static_cast<std::uint32_t>(p.t);
    const int at = reads ? g : 0;
    Packed x[kPacks], dy[kPacks], z[kPacks];
    team.read(p.x(i, j, at), x);
    team.read(p.dy(i, j, at), dy);
    if constexpr (kGated) team.read(p.gate(i, j, at), z);
    Packed residual[kPacks] = {};
    if (p.dresidual.data) team.read(p.dresidual(i, j, at), residual);
    float squares = 0, dot = 0;
#pragma unroll
    for (int n = 0; n < kPacks; ++n) {
      if (!team.has(n)) continue;
      const auto w = load_pack<kPack>(weight + team.column(n));
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        float v = x[n][e];
        if constexpr (kGated) v *= z[n][e] * sigmoid_for<bfloat16>(z[n][e]);
        squares += v * v;
        dot += dy[n][e] * w[e] * v;
      }
    }
    const float2 both = team.sum({squares, dot}, turn ^= 1);
    const float rstd = rsqrtf(both.x / static_cast<float>(p.d) + p.eps);
    const float mean = both.y * rstd / static_cast<float>(p.d);
    if (!reads) continue;
#pragma unroll
    for (int n = 0; n < kPacks; ++n) {
      if (!team.has(n)) continue;
      const auto w = load_pack<kPack>(weight + team.column(n));
      float dx[kPack], dgate[kPack];
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        float silu = 1;
        if constexpr (kGated) {
          const float s = sigmoid_for<bfloat16>(z[n][e]);
          silu = z[n][e] * s;
          dgate[e] = x[n][e] * silu_gradient_for<bfloat16>(z[n][e], s);
        }
        const float normed = x[n][e] * silu * rstd;
        const float dv = rstd * (dy[n][e] * w[e] - normed * mean);
        dweight[n][e] += dy[n][e] * normed;
        if constexpr (kGated) dgate[e] *= dv;
        dx[e] = dv * silu + residual[n][e];
      }
      store_pack(p.dx(i, j, g) + team.column(n), dx);
      if constexpr (kGated) store_pack(p.dgate(i, j, g) + team.column(n), dgate);
    }
  }
  for (int turn = 0; turn < slots; ++turn) {  // slots add their sums, one after the other
    if (works && slot == turn) {
#pragma unroll
      for (int n = 0; n < kPacks; ++n)
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
          if (!team.has(n)) continue;
          float* const sum = sums + here * p.d + team.column(n) + e;
          *sum = turn == 0 ? dweight[n][e] : *sum + dweight[n][e];
        }
    }
    __syncthreads();
  }
  const std::int64_t pitch = static_cast<std::int64_t>(p.groups) * p.d;
  float* const partial = partials + run * pitch;
  const int first = (g - here) * p.d, size = min(groups_here, p.groups - (g - here)) * p.d;
  for (int k = static_cast<int>(threadIdx.x); k < size; k += kThreads) partial[first + k] = sums[k];
}

template <int kLanes, int kPacks, bool kGated>
struct Teams {
  static constexpr int kTeams = kThreads / kLanes;
  /// How many groups a block has teams for: as few teams as can be must be left over.
  static int groups_of_a_block(int groups) {
    int best = 1;
    const auto covered = [&](int here) { return (groups + here - 1) / here * here; };
    for (int here = 2; here <= kTeams; here *= 2)
      if (covered(here) <= covered(best)) best = here;
    return best;
  }
  static void run(const Problem& p, const RmsNorm&, const Stream& stream) {
    launch("rms_norm", stream, {(p.rows + kTeams - 1) / kTeams}, forward<kLanes, kPacks, kGated>, p);
  }
  static void run(const Problem& p, const RmsNormBackward& a, const Stream& stream) {
    constexpr auto op = "rms_norm_backward";
    constexpr int kBlocks = kSms * (kPacks == 1 ? 3 : 2);
    const int groups_here = groups_of_a_block(p.groups), slots = kTeams / groups_here;
    const int group_tiles = (p.groups + groups_here - 1) / groups_here;
    const std::int64_t tokens = p.rows / p.groups, pitch = static_cast<std::int64_t>(p.groups) * p.d;
    const std::int64_t runs =
        std::min<std::int64_t>((tokens + slots - 1) / slots, std::max(1, kBlocks / group_tiles));
    const Workspace<float> partials(runs * pitch, stream, op);
    launch(op, stream,
           {runs * group_tiles, kThreads, static_cast<std::size_t>(groups_here * p.d) * sizeof(float)},
           backward<kLanes, kPacks, kGated>, p, groups_here, group_tiles, tokens, partials.data());
    launch_add_partials<float, float>(op, stream, partials.data(), runs, pitch,
                                      {a.dweight.ptr<float>(), pitch, p.d, a.dweight.stride(0), 1});
  }
};

/// The smallest team for rows of `d` numbers.
template <bool kGated, class Arguments>
void run_gated(const Problem& p, const Arguments& a, const Stream& stream) {
  const int packs = p.d / kPack;
  if (packs <= 8) return Teams<8, 1, kGated>::run(p, a, stream);
  if (packs == 12) return Teams<4, 3, kGated>::run(p, a, stream);
  if (packs <= 16) return Teams<8, 2, kGated>::run(p, a, stream);
  if (packs <= 32) return Teams<32, 1, kGated>::run(p, a, stream);
  if (packs <= 64) return Teams<64, 1, kGated>::run(p, a, stream);
  if (packs <= 128) return Teams<64, 2, kGated>::run(p, a, stream);
  if (packs <= 192) return Teams<64, 3, kGated>::run(p, a, stream);
  return Teams<64, 4, kGated>::run(p, a, stream);
}
template <class Arguments>
void run(const Problem& p, const Arguments& a, const Stream& stream) {
  if (a.gate)
    run_gated<true>(p, a, stream);
  else
    run_gated<false>(p, a, stream);
}

template <class Arguments>
bool fits(const Arguments& a) {
  return a.x.dim(3) <= 2048 && a.x.numel() / a.x.dim(3) < std::numeric_limits<std::int32_t>::max() &&
         in_packs(a.x, kPack) && in_packs(a.gate, kPack) && in_packs(a.weight, kPack);
}

}  // namespace

bool rms_norm_rows(const RmsNorm& a, const Stream& stream) {
  if (!fits(a) || !in_packs(a.y, kPack)) return false;
  Problem p(a);
  p.y = strided<bfloat16>(a.y);
  run(p, a, stream);
  return true;
}

bool rms_norm_backward_rows(const RmsNormBackward& a, const Stream& stream) {
  if (!fits(a) || !in_packs(a.dy, kPack) || !in_packs(a.dresidual, kPack) || !in_packs(a.dx, kPack) ||
      !in_packs(a.dgate, kPack))
    return false;
  Problem p(a);
  p.dy = strided<const bfloat16>(a.dy), p.dresidual = strided<const bfloat16>(a.dresidual);
  p.dx = strided<bfloat16>(a.dx), p.dgate = strided<bfloat16>(a.dgate);
  run(p, a, stream);
  return true;
}

}  // namespace transmamba::cuda
