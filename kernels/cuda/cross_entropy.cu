// A block a token: the vocabulary is long.
#include "kernels/cross_entropy.h"

#include "kernels/cuda/device.cuh"

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

template <class T>
__global__ void maximum(Strided<const T> logits, Strided<T> out, std::int64_t t, std::int64_t vocab) {
  const std::int64_t i = blockIdx.x / t, j = blockIdx.x % t;
  const T* const row = logits(i, j);
  T top = -static_cast<T>(INFINITY);
  for (std::int64_t k = threadIdx.x; k < vocab; k += blockDim.x) top = Larger{}(top, row[k]);
  top = block_reduce<Larger>(top);
  if (threadIdx.x == 0) *out(i, j) = top;
}

template <class T>
__global__ void sums(Strided<const T> logits, Tokens targets, Strided<const T> maximum, Strided<T> partial,
                     std::int64_t t, Shard shard) {
  const std::int64_t i = blockIdx.x / t, j = blockIdx.x % t;
  const T* const row = logits(i, j);
  const T top = *maximum(i, j);
  double sum = 0;
  for (std::int64_t k = threadIdx.x; k < shard.columns; k += blockDim.x)
    sum += static_cast<double>(exp(row[k] - top));
  sum = block_reduce<Plus>(sum);
  if (threadIdx.x > 0) return;
  const std::int32_t target = *targets(i, j);
  *partial(0, i, j) = static_cast<T>(sum);
  *partial(1, i, j) = shard.holds(target)   ? row[target - shard.begin]
                      : shard.known(target) ? T(0)
                                            : not_a_number<T>();
}

/// A thread a token; lse may alias maximum.
template <class T>
__global__ void loss_of(Strided<const T> maximum, Strided<const T> partial, Strided<T> loss, Strided<T> lse,
                        std::int64_t t, std::int64_t size) {
  const std::int64_t i = global_index() / t, j = global_index() % t;
  if (global_index() >= size) return;
  const T top = *maximum(i, j), log_sum = log(*partial(0, i, j));
  *loss(i, j) = log_sum + (top - *partial(1, i, j));
  *lse(i, j) = top + log_sum;
}

/// Each element is read and written by one thread: dlogits may alias logits.
template <class T>
__global__ void backward(Strided<const T> logits, Tokens targets, Strided<const T> lse, T scale,
                         Strided<T> dlogits, std::int64_t t, Shard shard) {
  const std::int64_t i = blockIdx.x / t, j = blockIdx.x % t;
  const std::int32_t target = *targets(i, j);
  const T total = shard.known(target) ? *lse(i, j) : not_a_number<T>();
  for (std::int64_t k = threadIdx.x; k < shard.columns; k += blockDim.x)
    dlogits(i, j)[k] = scale * exp(logits(i, j)[k] - total) - (k + shard.begin == target ? scale : T(0));
}

}  // namespace

void vocab_max(const VocabMax& a, const Stream& stream) {
  dispatch_float(a.logits.dtype(), "vocab_max", [&](auto zero) {
    using T = decltype(zero);
    launch("vocab_max", stream, {a.maximum.numel()}, maximum<T>, strided<const T>(a.logits),
           strided<T>(a.maximum), a.logits.dim(1), a.logits.dim(2));
  });
}

void cross_entropy_partial(const CrossEntropyPartial& a, const Stream& stream) {
  dispatch_float(a.logits.dtype(), "cross_entropy_partial", [&](auto zero) {
    using T = decltype(zero);
    launch("cross_entropy_partial", stream, {a.targets.numel()}, sums<T>, strided<const T>(a.logits),
           strided<const std::int32_t>(a.targets), strided<const T>(a.maximum), strided<T>(a.partial),
           a.logits.dim(1), shard_of(a));
  });
}

void cross_entropy_loss(const CrossEntropyLoss& a, const Stream& stream) {
  dispatch_float(a.maximum.dtype(), "cross_entropy_loss", [&](auto zero) {
    using T = decltype(zero);
    launch("cross_entropy_loss", stream, thread_each(a.maximum.numel()), loss_of<T>,
           strided<const T>(a.maximum), strided<const T>(a.partial), strided<T>(a.loss), strided<T>(a.lse),
           a.maximum.dim(1), a.maximum.numel());
  });
}

void cross_entropy_backward(const CrossEntropyBackward& a, const Stream& stream) {
  dispatch_float(a.logits.dtype(), "cross_entropy_backward", [&](auto zero) {
    using T = decltype(zero);
    launch("cross_entropy_backward", stream, {a.targets.numel()}, backward<T>, strided<const T>(a.logits),
           strided<const std::int32_t>(a.targets), strided<const T>(a.lse), static_cast<T>(a.scale),
           strided<T>(a.dlogits), a.logits.dim(1), shard_of(a));
  });
}

}  // namespace transmamba::cuda
