// What cuDNN has no kernels for where a query's keys come in parts: their sum, and the gradients of a single
// score.
#include "kernels/cuda/attention_bf16.cuh"

#include <cmath>

#include "kernels/cuda/vectors.cuh"

namespace transmamba::cuda {
namespace {

constexpr int kQueries = 64;  // of a block, all of one head

struct Merge {
  Strided<const bfloat16> more_o;
  Strided<const float> more_lse;
  Strided<bfloat16> o;
  Strided<float> lse;
  std::int64_t tq, heads, blocks;  // blocks a head
  int p;
};

/// First a thread a query, for the weights; then a thread 8 elements of o.
__global__ void merge(Merge a) {
  constexpr int kPack = 8;
  __shared__ float kept[kQueries], added[kQueries];
  const std::int64_t first = blockIdx.x % a.blocks * kQueries, head = blockIdx.x / a.blocks;
  const std::int64_t b = head / a.heads, h = head % a.heads;
  const int queries = static_cast<int>(min(std::int64_t{kQueries}, a.tq - first));
  if (const int i = threadIdx.x; i < queries) {
    float* const lse = a.lse(b, h, first + i);
    const float mine = *lse, more = *a.more_lse(b, h, first + i), low = fminf(mine, more),
                high = fmaxf(mine, more);
    const float ratio = expf(low - high), larger = 1 / (1 + ratio), smaller = ratio / (1 + ratio);
    kept[i] = mine < more ? smaller : larger;
    added[i] = mine < more ? larger : smaller;
    *lse = high + log1pf(ratio);
  }
  __syncthreads();
  const int packs = a.p / kPack;
  for (int item = static_cast<int>(threadIdx.x); item < queries * packs;
       item += static_cast<int>(blockDim.x)) {
    const int i = item / packs, c = item % packs * kPack;
    bfloat16* const to = a.o(b, first + i, h) + c;
    const auto mine = load_pack<kPack>(to), more = load_pack<kPack>(a.more_o(b, first + i, h) + c);
    float sum[kPack];
#pragma unroll
    for (int e = 0; e < kPack; ++e) sum[e] = kept[i] * mine[e] + added[i] * more[e];
    store_pack(to, sum);
  }
}

struct OneScore {
  Strided<const bfloat16> dout, q, k, v, o;
  Strided<const float> lse;
  Strided<bfloat16> dq, dk, dv;
  std::int64_t all_heads, heads, n, p;
  float scale;
  bool accumulate, accumulate_dq;
};

/// A warp a head.
__global__ void one_score(OneScore a) {
  const std::int64_t head = global_index() / kWarp;
  if (head >= a.all_heads) return;
  const std::int64_t b = head / a.heads, h = head % a.heads, lane = threadIdx.x % kWarp;
  const bfloat16 *q = a.q(b, 0, h), *k = a.k(b, 0, h), *v = a.v(b, 0, h), *o = a.o(b, 0, h),
                 *dout = a.dout(b, 0, h);
  float score = 0, slope = 0;  // q . k, and dout . (v - o): 0 where o is of this key alone
  for (std::int64_t c = lane; c < a.n; c += kWarp) score += load(q + c) * load(k + c);
  for (std::int64_t c = lane; c < a.p; c += kWarp) slope += load(dout + c) * (load(v + c) - load(o + c));
  const float weight = expf(a.scale * warp_reduce<Plus>(score) - *a.lse(b, h, 0));
  const float dscore = weight * warp_reduce<Plus>(slope) * a.scale;
  const auto put = [](bool adds, bfloat16* to, float x) { store(to, adds ? load(to) + x : x); };
  for (std::int64_t c = lane; c < a.n; c += kWarp) {
    put(a.accumulate_dq, a.dq(b, 0, h) + c, dscore * load(k + c));
    put(a.accumulate, a.dk(b, 0, h) + c, dscore * load(q + c));
  }
  for (std::int64_t c = lane; c < a.p; c += kWarp)
    put(a.accumulate, a.dv(b, 0, h) + c, weight * load(dout + c));
}

}  // namespace

void merge_attention_bf16(const MergeAttention& a, const Stream& stream) {
  const std::int64_t b = a.o.dim(0), tq = a.o.dim(1), h = a.o.dim(2), blocks = (tq + kQueries - 1) / kQueries;
  const Merge arguments{strided<const bfloat16>(a.more_o),
                        strided<const float>(a.more_lse),
                        strided<bfloat16>(a.o),
                        strided<float>(a.lse),
                        tq,
                        h,
                        blocks,
                        static_cast<int>(a.o.dim(3))};
  launch("attention", stream, {b * h * blocks}, merge, arguments);
}

void one_score_backward_bf16(const AttentionBackward& a, const Stream& stream) {
  const std::int64_t heads = a.q.dim(2), all_heads = a.q.dim(0) * heads, n = a.q.dim(3);
  const OneScore arguments{strided<const bfloat16>(a.dout),
                           strided<const bfloat16>(a.q),
                           strided<const bfloat16>(a.k),
                           strided<const bfloat16>(a.v),
                           strided<const bfloat16>(a.o),
                           strided<const float>(a.lse),
                           strided<bfloat16>(a.dq),
                           strided<bfloat16>(a.dk),
                           strided<bfloat16>(a.dv),
                           all_heads,
                           heads,
                           n,
                           a.v.dim(3),
                           1 / std::sqrt(static_cast<float>(n)),
                           a.accumulate,
                           a.accumulate_dq};
  launch("attention_backward", stream, thread_each(all_heads * kWarp), one_score, arguments);
}

}  // namespace transmamba::cuda
