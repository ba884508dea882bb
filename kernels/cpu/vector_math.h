// Scalar functions written so that loops over them vectorise (libm's do not without -ffast-math).
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace transmamba::cpu {

/// e^x. float: x clamped to [-87.33, 88.37] (e^-inf gives 1.2e-38, not 0: mask before use), relative error <
/// 2e-7, by 2^round(x/ln 2) times a degree-6 polynomial. double: the library's.
inline float exp(float x) {
  x = x < -87.33f ? -87.33f : (x > 88.37f ? 88.37f : x);
  const float k = std::nearbyint(x * 1.44269504f);
  const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;  // x - k ln 2, in two parts
  float p = 1.3888889e-3f;
  p = p * r + 8.3333333e-3f;
  p = p * r + 4.1666667e-2f;
  p = p * r + 1.6666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * std::bit_cast<float>((static_cast<std::int32_t>(k) + 127) << 23);
}
inline double exp(double x) { return std::exp(x); }

/// e^x for x <= 0 and exactly 0 far below (float: 1e-26, double: 1e-304): probabilities and decays, whose
/// products would else be subnormal numbers, which are a hundred times slower. NaN stays NaN.
inline float exp_or_zero(float x) {
  const float e = cpu::exp(x);
  return x < -60.0f ? 0.0f : e;
}
inline double exp_or_zero(double x) {
  const double e = std::exp(x);
  return x < -700.0 ? 0.0 : e;
}

template <class T>
T sigmoid(T x) {
  return T(1) / (T(1) + cpu::exp(-x));
}
template <class T>
T silu(T x) {
  return x * sigmoid(x);
}
/// d SiLU(x) / dx.
template <class T>
T silu_gradient(T x) {
  const T s = sigmoid(x);
  return s * (T(1) + x * (T(1) - s));
}

}  // namespace transmamba::cpu
