#include "kernels/step_size.h"

#include <cmath>

#include "kernels/cpu/tokens.h"
#include "kernels/cpu/vector_math.h"

namespace transmamba::cpu {
namespace {

// Step sizes are small (1e-3 is usual), so both functions keep their relative accuracy near zero.

/// log(1 + u) for u in [0, 1]: 2 atanh(u / (2 + u)) by its series, whose argument is at most 1/3.
float log1p_of_unit(float u) {
  const float s = u / (2.0f + u), s2 = s * s;
  float p = 1.0f / 17;
  p = p * s2 + 1.0f / 15;
  p = p * s2 + 1.0f / 13;
  p = p * s2 + 1.0f / 11;
  p = p * s2 + 1.0f / 9;
  p = p * s2 + 1.0f / 7;
  p = p * s2 + 1.0f / 5;
  p = p * s2 + 1.0f / 3;
  p = p * s2 + 1.0f;
  return 2.0f * s * p;
}
double log1p_of_unit(double u) { return std::log1p(u); }

/// 1 - e^-x for x >= 0, by its Taylor series below 1/2.
float one_minus_exp(float x) {
  float p = -1.0f / 40320;
  p = p * x + 1.0f / 5040;
  p = p * x - 1.0f / 720;
  p = p * x + 1.0f / 120;
  p = p * x - 1.0f / 24;
  p = p * x + 1.0f / 6;
  p = p * x - 0.5f;
  p = p * x + 1.0f;
  const float large = 1.0f - cpu::exp(-x);
  return x < 0.5f ? p * x : large;
}
double one_minus_exp(double x) { return -std::expm1(-x); }

template <class T>
void forward_row(const T* raw, const T* bias, T* dt, std::int64_t h) {
#pragma omp simd
  for (std::int64_t k = 0; k < h; ++k) {
    const T x = raw[k] + bias[k], magnitude = x < 0 ? -x : x;
    dt[k] = (x < 0 ? T(0) : x) + log1p_of_unit(cpu::exp(-magnitude));
  }
}

template <class T>
void backward_row(const T* ddt, const T* dt, T* draw, T* dbias, std::int64_t h) {
#pragma omp simd
  for (std::int64_t k = 0; k < h; ++k) {
    const T d = ddt[k] * one_minus_exp(dt[k]);
    draw[k] = d;
    dbias[k] += d;
  }
}

template <class T>
void forward(const StepSize& a, const Stream& stream) {
  const std::int64_t h = a.raw.dim(2);
  for_each_token(a.raw.dim(0), a.raw.dim(1), h, stream, [&](std::int64_t i, std::int64_t j) {
    forward_row(a.raw.ptr<T>(i, j), a.bias.ptr<T>(), a.dt.ptr<T>(i, j), h);
  });
}

template <class T>
void backward(const StepSizeBackward& a, const Stream& stream) {
  const std::int64_t t = a.dt.dim(1), h = a.dt.dim(2), tokens = a.dt.dim(0) * t;
  const std::int64_t block = tokens_per_partial(tokens);
  const auto dbias =
      sum_of_partials<T>((tokens + block - 1) / block, h, stream, [&](std::int64_t item, T* partial) {
        for (std::int64_t row = item * block; row < std::min(tokens, (item + 1) * block); ++row)
          backward_row(a.ddt.ptr<T>(row / t, row % t), a.dt.ptr<T>(row / t, row % t),
                       a.draw.ptr<T>(row / t, row % t), partial, h);
      });
  for (std::int64_t k = 0; k < h; ++k) a.dbias.ptr<T>()[k] += dbias[static_cast<std::size_t>(k)];
}

}  // namespace

void step_size(const StepSize& arguments, const Stream& stream) {
  with_float(arguments.raw.dtype(), "step_size",
             [&](auto zero) { forward<decltype(zero)>(arguments, stream); });
}

void step_size_backward(const StepSizeBackward& arguments, const Stream& stream) {
  with_float(arguments.dt.dtype(), "step_size_backward",
             [&](auto zero) { backward<decltype(zero)>(arguments, stream); });
}

}  // namespace transmamba::cpu
