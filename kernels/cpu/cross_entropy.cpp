#include "kernels/cross_entropy.h"

#include <cmath>
#include <limits>

#include "kernels/cpu/tokens.h"
#include "kernels/cpu/vector_math.h"

namespace transmamba::cpu {
namespace {

template <class T>
T log_sum_exp(const T* logits, std::int64_t vocab) {
  T top = -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(max : top)
  for (std::int64_t k = 0; k < vocab; ++k) top = logits[k] > top ? logits[k] : top;
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t k = 0; k < vocab; ++k) sum += exp_or_zero(logits[k] - top);
  return top + std::log(sum);
}

template <class T>
void softmax_row(const T* logits, T lse, T scale, T* dlogits, std::int64_t vocab) {
#pragma omp simd
  for (std::int64_t k = 0; k < vocab; ++k) dlogits[k] = scale * exp_or_zero(logits[k] - lse);
}

template <class T>
void forward(const CrossEntropy& a, const Stream& stream) {
  const std::int64_t vocab = a.logits.dim(2);
  for_each_token(a.logits.dim(0), a.logits.dim(1), vocab, stream, [&](std::int64_t i, std::int64_t j) {
    const T* const logits = a.logits.ptr<T>(i, j);
    const T lse = log_sum_exp(logits, vocab);
    *a.lse.ptr<T>(i, j) = lse;
    *a.loss.ptr<T>(i, j) = lse - logits[*a.targets.ptr<std::int32_t>(i, j)];
  });
}

template <class T>
void backward(const CrossEntropyBackward& a, const Stream& stream) {
  const std::int64_t vocab = a.logits.dim(2);
  const T scale = static_cast<T>(a.scale);
  for_each_token(a.logits.dim(0), a.logits.dim(1), vocab, stream, [&](std::int64_t i, std::int64_t j) {
    T* const dlogits = a.dlogits.ptr<T>(i, j);
    softmax_row(a.logits.ptr<T>(i, j), *a.lse.ptr<T>(i, j), scale, dlogits, vocab);
    dlogits[*a.targets.ptr<std::int32_t>(i, j)] -= scale;
  });
}

}  // namespace

void cross_entropy(const CrossEntropy& arguments, const Stream& stream) {
  check_tokens(arguments.targets, arguments.logits.dim(2), "cross_entropy", "targets");
  with_float(arguments.logits.dtype(), "cross_entropy",
             [&](auto zero) { forward<decltype(zero)>(arguments, stream); });
}

void cross_entropy_backward(const CrossEntropyBackward& arguments, const Stream& stream) {
  check_tokens(arguments.targets, arguments.logits.dim(2), "cross_entropy_backward", "targets");
  with_float(arguments.logits.dtype(), "cross_entropy_backward",
             [&](auto zero) { backward<decltype(zero)>(arguments, stream); });
}

}  // namespace transmamba::cpu
