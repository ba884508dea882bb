// A block a token: the vocabulary is long.
#include "kernels/cross_entropy.h"

#include "kernels/cuda/device.cuh"

namespace transmamba::cuda {
namespace {

using Tokens = Strided<const std::int32_t>;

__device__ bool known(std::int32_t target, std::int64_t vocab) { return 0 <= target && target < vocab; }

template <class T>
__global__ void forward(Strided<const T> logits, Tokens targets, Strided<T> loss, Strided<T> lse,
                        std::int64_t t, std::int64_t vocab) {
  const std::int64_t i = blockIdx.x / t, j = blockIdx.x % t;
  const T* const row = logits(i, j);
  T top = -static_cast<T>(INFINITY), sum = 0;
  for (std::int64_t k = threadIdx.x; k < vocab; k += blockDim.x) top = Larger{}(top, row[k]);
  top = block_reduce<Larger>(top);
  for (std::int64_t k = threadIdx.x; k < vocab; k += blockDim.x) sum += exp(row[k] - top);
  sum = block_reduce<Plus>(sum);
  if (threadIdx.x > 0) return;
  const std::int32_t target = *targets(i, j);
  *lse(i, j) = top + log(sum);
  *loss(i, j) = known(target, vocab) ? top + log(sum) - row[target] : not_a_number<T>();
}

/// Each element is read and written by one thread: dlogits may alias logits.
template <class T>
__global__ void backward(Strided<const T> logits, Tokens targets, Strided<const T> lse, T scale,
                         Strided<T> dlogits, std::int64_t t, std::int64_t vocab) {
  const std::int64_t i = blockIdx.x / t, j = blockIdx.x % t;
  const std::int32_t target = *targets(i, j);
  const T total = known(target, vocab) ? *lse(i, j) : not_a_number<T>();
  for (std::int64_t k = threadIdx.x; k < vocab; k += blockDim.x)
    dlogits(i, j)[k] = scale * exp(logits(i, j)[k] - total) - (k == target ? scale : T(0));
}

}  // namespace

void cross_entropy(const CrossEntropy& a, const Stream& stream) {
  dispatch_float(a.logits.dtype(), "cross_entropy", [&](auto zero) {
    using T = decltype(zero);
    launch("cross_entropy", stream, {a.targets.numel()}, forward<T>, strided<const T>(a.logits),
           strided<const std::int32_t>(a.targets), strided<T>(a.loss), strided<T>(a.lse), a.logits.dim(1),
           a.logits.dim(2));
  });
}

void cross_entropy_backward(const CrossEntropyBackward& a, const Stream& stream) {
  dispatch_float(a.logits.dtype(), "cross_entropy_backward", [&](auto zero) {
    using T = decltype(zero);
    launch("cross_entropy_backward", stream, {a.targets.numel()}, backward<T>, strided<const T>(a.logits),
           strided<const std::int32_t>(a.targets), strided<const T>(a.lse), static_cast<T>(a.scale),
           strided<T>(a.dlogits), a.logits.dim(1), a.logits.dim(2));
  });
}

}  // namespace transmamba::cuda
