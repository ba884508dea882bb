#include "kernels/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/tokens.h"
#include "kernels/cpu/vector_math.h"

namespace transmamba::cpu {
namespace {

template <class T>
T row_maximum(const T* logits, std::int64_t vocab) {
  T top = -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(max : top)
  for (std::int64_t k = 0; k < vocab; ++k) top = logits[k] > top ? logits[k] : top;
  return top;
}

template <class T>
T sum_of_exp(const T* logits, T maximum, std::int64_t vocab) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t k = 0; k < vocab; ++k) sum += exp_or_zero(logits[k] - maximum);
  return sum;
}

/// What exponents are relative to: the maximum, or anything finite where all logits are -inf.
template <class T>
T reference(T maximum) {
  return maximum == -std::numeric_limits<T>::infinity() ? T(0) : maximum;
}

template <class T>
struct MaximumAndSum {
  T maximum;
  T sum;  // of exp(logit - maximum)
};
/// A run of logits at a time, which stays in the nearest cache; where it has a larger maximum, the sum so far
/// is rescaled. Runs are added in float64, so that the error does not grow with the vocabulary.
template <class T>
MaximumAndSum<T> maximum_and_sum(const T* logits, std::int64_t vocab) {
  constexpr std::int64_t kRun = 512;
  T top = -std::numeric_limits<T>::infinity();
  double sum = 0;
  for (std::int64_t begin = 0; begin < vocab; begin += kRun) {
    const std::int64_t size = std::min(kRun, vocab - begin);
    const T highest = row_maximum(logits + begin, size);
    if (highest > top) {
      sum *= std::exp(static_cast<double>(top - highest));
      top = highest;
    }
    sum += static_cast<double>(sum_of_exp(logits + begin, reference(top), size));
  }
  return {top, static_cast<T>(sum)};
}

template <class T>
void softmax_row(const T* logits, T lse, T scale, T* dlogits, std::int64_t vocab) {
#pragma omp simd
  for (std::int64_t k = 0; k < vocab; ++k) dlogits[k] = scale * exp_or_zero(logits[k] - lse);
}

/// Where the target of (i, j) lies in this shard, or -1.
template <class Arguments>
std::int64_t column_of_target(const Arguments& a, std::int64_t i, std::int64_t j) {
  const std::int64_t column = *a.targets.template ptr<std::int32_t>(i, j) - a.vocab_begin;
  return column < a.logits.dim(2) ? std::max<std::int64_t>(column, -1) : -1;
}

template <class T>
void partial(const CrossEntropyPartial& a, const Stream& stream) {
  const std::int64_t vocab = a.logits.dim(2);
  for_each_token(a.logits.dim(0), a.logits.dim(1), vocab, stream, [&](std::int64_t i, std::int64_t j) {
    const T* const logits = a.logits.ptr<T>(i, j);
    const std::int64_t target = column_of_target(a, i, j);
    const MaximumAndSum<T> found = maximum_and_sum(logits, vocab);
    *a.maximum.ptr<T>(i, j) = found.maximum;
    *a.partial.ptr<T>(0, i, j) = found.sum;
    *a.partial.ptr<T>(1, i, j) = target < 0 ? T(0) : logits[target];
  });
}

template <class T>
void rescale(const CrossEntropyRescale& a, const Stream& stream) {
  for_each_token(a.own.dim(0), a.own.dim(1), 1, stream, [&](std::int64_t i, std::int64_t j) {
    *a.partial.ptr<T>(0, i, j) *= exp_or_zero(*a.own.ptr<T>(i, j) - reference(*a.maximum.ptr<T>(i, j)));
  });
}

template <class T>
void loss(const CrossEntropyLoss& a, const Stream& stream) {
  for_each_token(a.maximum.dim(0), a.maximum.dim(1), 1, stream, [&](std::int64_t i, std::int64_t j) {
    const T top = *a.maximum.ptr<T>(i, j), log_sum = std::log(*a.partial.ptr<T>(0, i, j));
    *a.loss.ptr<T>(i, j) = log_sum + (top - *a.partial.ptr<T>(1, i, j));
    *a.lse.ptr<T>(i, j) = top + log_sum;
  });
}

template <class T>
void backward(const CrossEntropyBackward& a, const Stream& stream) {
  const std::int64_t vocab = a.logits.dim(2);
  const T scale = static_cast<T>(a.scale);
  for_each_token(a.logits.dim(0), a.logits.dim(1), vocab, stream, [&](std::int64_t i, std::int64_t j) {
    T* const dlogits = a.dlogits.ptr<T>(i, j);
    const std::int64_t target = column_of_target(a, i, j);
    softmax_row(a.logits.ptr<T>(i, j), *a.lse.ptr<T>(i, j), scale, dlogits, vocab);
    if (target >= 0) dlogits[target] -= scale;
  });
}

}  // namespace

void cross_entropy_partial(const CrossEntropyPartial& arguments, const Stream& stream) {
  check_tokens(arguments.targets, arguments.vocab_size, "cross_entropy_partial", "targets");
  with_float(arguments.logits.dtype(), "cross_entropy_partial",
             [&](auto zero) { partial<decltype(zero)>(arguments, stream); });
}

void cross_entropy_rescale(const CrossEntropyRescale& arguments, const Stream& stream) {
  with_float(arguments.own.dtype(), "cross_entropy_rescale",
             [&](auto zero) { rescale<decltype(zero)>(arguments, stream); });
}

void cross_entropy_loss(const CrossEntropyLoss& arguments, const Stream& stream) {
  with_float(arguments.maximum.dtype(), "cross_entropy_loss",
             [&](auto zero) { loss<decltype(zero)>(arguments, stream); });
}

void cross_entropy_backward(const CrossEntropyBackward& arguments, const Stream& stream) {
  check_tokens(arguments.targets, arguments.vocab_size, "cross_entropy_backward", "targets");
  with_float(arguments.logits.dtype(), "cross_entropy_backward",
             [&](auto zero) { backward<decltype(zero)>(arguments, stream); });
}

}  // namespace transmamba::cpu
