#include "kernels/adamw.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/tokens.h"

namespace transmamba::cpu {
namespace {

double clipping(const AdamW& a) {
  if (!a.squared_norm) return 1;
  return std::min(1.0, a.clip_grad / (std::sqrt(*a.squared_norm.ptr<double>()) + 1e-6));
}

/// The numbers of one step, rounded once.
template <class T>
struct Coefficients {
  static constexpr T kTiny = std::numeric_limits<T>::min() * T(1e8);
  T grad_scale, lr, beta1, beta2, rest1, rest2, correction1, correction2, eps, weight_decay;
  explicit Coefficients(const AdamW& a)
      : grad_scale(static_cast<T>(a.grad_scale * clipping(a))),
        lr(static_cast<T>(a.lr)),
        beta1(static_cast<T>(a.beta1)),
        beta2(static_cast<T>(a.beta2)),
        rest1(static_cast<T>(1 - a.beta1)),
        rest2(static_cast<T>(1 - a.beta2)),
        correction1(static_cast<T>(1 / (1 - std::pow(a.beta1, static_cast<double>(a.step))))),
        correction2(static_cast<T>(1 / (1 - std::pow(a.beta2, static_cast<double>(a.step))))),
        eps(static_cast<T>(a.eps)),
        weight_decay(static_cast<T>(a.weight_decay)) {}
};

template <class T>
void update(const Coefficients<T> c, T* weight, const T* grad, T* m, T* v, std::int64_t begin,
            std::int64_t end) {
#pragma omp simd
  for (std::int64_t i = begin; i < end; ++i) {
    const T g = c.grad_scale * grad[i];
    const T mean = c.beta1 * m[i] + c.rest1 * g;
    const T square = c.beta2 * v[i] + c.rest2 * g * g;
    const T step = mean * c.correction1 / (std::sqrt(square * c.correction2) + c.eps);
    // Moments that fade, of rare tokens say, would be subnormal for ever, and fifty times slower.
    m[i] = std::abs(mean) < c.kTiny ? T(0) : mean;
    v[i] = square < c.kTiny ? T(0) : square;
    weight[i] -= c.lr * (step + c.weight_decay * weight[i]);
  }
}

template <class T>
void run(const AdamW& a, const Stream& stream) {
  check(!a.rounded, "adamw", "rounded: the CPU backend has no bfloat16");
  for (const ConstView& x : {a.squared_norm, a.loss})
    if (x && !std::isfinite(*x.ptr<double>())) return;
  const Coefficients<T> coefficients(a);
  parallel_blocks(a.weight.dim(0), kBlockElements, stream, [&](std::int64_t begin, std::int64_t end) {
    update(coefficients, a.weight.ptr<T>(), a.grad.ptr<T>(), a.m.ptr<T>(), a.v.ptr<T>(), begin, end);
  });
}

}  // namespace

void adamw(const AdamW& arguments, const Stream& stream) {
  with_float(arguments.weight.dtype(), "adamw", [&](auto zero) { run<decltype(zero)>(arguments, stream); });
}

}  // namespace transmamba::cpu
