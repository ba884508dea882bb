// A block a token: the vocabulary is long.
#include "kernels/cross_entropy.h"

#include "kernels/cuda/vectors.cuh"

namespace transmamba::cuda {
namespace {

using Tokens = Strided<const std::int32_t>;

/// The columns of the vocabulary that are here.
struct Shard {
  std::int64_t begin, columns, size;  // of the whole vocabulary
  __device__ bool known(std::int32_t target) const { return 0 <= target && target < size; }
  __device__ bool holds(std::int32_t target) const { return begin <= target && target < begin + columns; }
};
template <class Arguments>
Shard shard_of(const Arguments& a) {
  return {a.vocab_begin, a.logits.dim(2), a.vocab_size};
}

constexpr int kAhead = 4;  // packs that a thread reads before it uses them

/// Calls f(pack, column) for the packs of a row that this thread owns.
template <int N, class T, class F>
__device__ void for_each_pack(const T* row, std::int64_t columns, F&& f) {
  const std::int64_t step = static_cast<std::int64_t>(blockDim.x) * N;
  std::int64_t k = threadIdx.x * N;
  for (; k + (kAhead - 1) * step < columns; k += kAhead * step) {
    Pack<T, N> packs[kAhead];
#pragma unroll
    for (int n = 0; n < kAhead; ++n) packs[n] = load_pack<N>(row + k + n * step);
#pragma unroll
    for (int n = 0; n < kAhead; ++n) f(packs[n], k + n * step);
  }
  for (; k < columns; k += step) f(load_pack<N>(row + k), k);
}

/// What exponents are relative to: the maximum, or anything finite where all logits are -inf.
template <class S>
__device__ S reference(S maximum) {
  return maximum == -static_cast<S>(INFINITY) ? S(0) : maximum;
}

/// Each thread has the maximum of what it has read and a sum relative to that, which it rescales where a pack
/// has a larger one; then the block makes all sums relative to its own maximum.
template <int N, class T, class S = Compute<T>>
__global__ void sums(Strided<const T> logits, Tokens targets, Strided<S> maximum, Strided<S> partial,
                     std::int64_t t, Shard shard) {
  const std::int64_t i = blockIdx.x / t, j = blockIdx.x % t;
  const T* const row = logits(i, j);
  S top = -static_cast<S>(INFINITY);
  double sum = 0;
  for_each_pack<N>(row, shard.columns, [&](const Pack<T, N>& pack, std::int64_t) {
    S highest = top, few = 0;
#pragma unroll
    for (int e = 0; e < N; ++e) highest = Larger{}(highest, pack[e]);
    if (highest > top) {
      sum *= static_cast<double>(exp_for<T>(top - highest));
      top = highest;
    }
    const S from = reference(top);
#pragma unroll
    for (int e = 0; e < N; ++e) few += exp_for<T>(pack[e] - from);
    sum += static_cast<double>(few);
  });
  const S all = block_reduce<Larger>(top);
  sum = block_reduce<Plus>(sum * static_cast<double>(exp_for<T>(top - reference(all))));
  if (threadIdx.x > 0) return;
  const std::int32_t target = *targets(i, j);
  *maximum(i, j) = all;
  *partial(0, i, j) = static_cast<S>(sum);
  *partial(1, i, j) = shard.holds(target)   ? load(row + (target - shard.begin))
                      : shard.known(target) ? S(0)
                                            : not_a_number<S>();
}

/// A thread a token.
template <class S>
__global__ void rescale(Strided<const S> own, Strided<const S> maximum, Strided<S> partial, std::int64_t t,
                        std::int64_t size) {
  const std::int64_t i = global_index() / t, j = global_index() % t;
  if (global_index() < size) *partial(0, i, j) *= exp(*own(i, j) - reference(*maximum(i, j)));
}

/// A thread a token; lse may alias maximum.
template <class S>
__global__ void loss_of(Strided<const S> maximum, Strided<const S> partial, Strided<S> loss, Strided<S> lse,
                        std::int64_t t, std::int64_t size) {
  const std::int64_t i = global_index() / t, j = global_index() % t;
  if (global_index() >= size) return;
  const S top = *maximum(i, j), log_sum = log(*partial(0, i, j));
  *loss(i, j) = log_sum + (top - *partial(1, i, j));
  *lse(i, j) = top + log_sum;
}

/// Each element is read and written by one thread: dlogits may alias logits.
template <int N, class T, class S = Compute<T>>
__global__ void backward(Strided<const T> logits, Tokens targets, Strided<const S> lse, S scale,
                         Strided<T> dlogits, std::int64_t t, Shard shard) {
  const std::int64_t i = blockIdx.x / t, j = blockIdx.x % t;
  const std::int32_t target = *targets(i, j);
  const std::int64_t column = target - shard.begin;
  const S total = shard.known(target) ? *lse(i, j) : not_a_number<S>();
  T* const out = dlogits(i, j);
  for_each_pack<N>(logits(i, j), shard.columns, [&](const Pack<T, N>& pack, std::int64_t k) {
    S d[N];
#pragma unroll
    for (int e = 0; e < N; ++e) d[e] = scale * exp_for<T>(pack[e] - total);
    if (k <= column && column < k + N) {
#pragma unroll
      for (int e = 0; e < N; ++e) d[e] -= k + e == column ? scale : S(0);
    }
    store_pack(out + k, d);
  });
}

/// Calls f(T{}, N) with the type of the logits and how many of them can be read at a time.
template <class F>
void dispatch(std::string_view op, const ConstView& logits, const ConstView& dlogits, F&& f) {
  dispatch_storage(logits.dtype(), op, [&](auto zero) {
    constexpr int kMost = 16 / sizeof(zero);
    if (in_packs(logits, kMost) && in_packs(dlogits, kMost))
      f(zero, std::integral_constant<int, kMost>{});
    else
      f(zero, std::integral_constant<int, 1>{});
  });
}

}  // namespace

void cross_entropy_partial(const CrossEntropyPartial& a, const Stream& stream) {
  constexpr auto op = "cross_entropy_partial";
  dispatch(op, a.logits, {}, [&](auto zero, auto n) {
    using T = decltype(zero);
    launch(op, stream, {a.targets.numel()}, sums<n, T>, strided<const T>(a.logits),
           strided<const std::int32_t>(a.targets), strided<Compute<T>>(a.maximum),
           strided<Compute<T>>(a.partial), a.logits.dim(1), shard_of(a));
  });
}

void cross_entropy_rescale(const CrossEntropyRescale& a, const Stream& stream) {
  constexpr auto op = "cross_entropy_rescale";
  dispatch_float(a.own.dtype(), op, [&](auto zero) {
    using S = decltype(zero);
    launch(op, stream, thread_each(a.own.numel()), rescale<S>, strided<const S>(a.own),
           strided<const S>(a.maximum), strided<S>(a.partial), a.own.dim(1), a.own.numel());
  });
}

void cross_entropy_loss(const CrossEntropyLoss& a, const Stream& stream) {
  dispatch_float(a.maximum.dtype(), "cross_entropy_loss", [&](auto zero) {
    using S = decltype(zero);
    launch("cross_entropy_loss", stream, thread_each(a.maximum.numel()), loss_of<S>,
           strided<const S>(a.maximum), strided<const S>(a.partial), strided<S>(a.loss), strided<S>(a.lse),
           a.maximum.dim(1), a.maximum.numel());
  });
}

void cross_entropy_backward(const CrossEntropyBackward& a, const Stream& stream) {
  constexpr auto op = "cross_entropy_backward";
  dispatch(op, a.logits, a.dlogits, [&](auto zero, auto n) {
    using T = decltype(zero);
    using S = Compute<T>;
    launch(op, stream, {a.targets.numel()}, backward<n, T>, strided<const T>(a.logits),
           strided<const std::int32_t>(a.targets), strided<const S>(a.lse), static_cast<S>(a.scale),
           strided<T>(a.dlogits), a.logits.dim(1), shard_of(a));
  });
}

}  // namespace transmamba::cuda
