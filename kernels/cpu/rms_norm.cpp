#include "kernels/rms_norm.h"

#include <cmath>
#include <vector>

#include "kernels/cpu/tokens.h"
#include "kernels/cpu/vector_math.h"

namespace transmamba::cpu {
namespace {

template <class T>
T sum_of_squares(const T* x, std::int64_t d) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < d; ++i) sum += x[i] * x[i];
  return sum;
}

/// v = x SiLU(gate) (v may alias x or gate); returns the sum of v^2.
template <class T>
T apply_gate(const T* x, const T* gate, T* v, std::int64_t d) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < d; ++i) {
    const T value = x[i] * silu(gate[i]);
    v[i] = value;
    sum += value * value;
  }
  return sum;
}

template <class T>
void scale_row(const T* v, const T* weight, T rstd, T* y, std::int64_t d) {
#pragma omp simd
  for (std::int64_t i = 0; i < d; ++i) y[i] = v[i] * rstd * weight[i];
}

template <class T>
void forward(const RmsNorm& a, const Stream& stream) {
  const std::int64_t groups = a.x.dim(2), d = a.x.dim(3);
  for_each_token(a.x.dim(0), a.x.dim(1), groups * d, stream, [&](std::int64_t i, std::int64_t j) {
    for (std::int64_t g = 0; g < groups; ++g) {
      const T* const x = a.x.ptr<T>(i, j, g);
      T* const y = a.y.ptr<T>(i, j, g);
      const T sum = a.gate ? apply_gate(x, a.gate.ptr<T>(i, j, g), y, d) : sum_of_squares(x, d);
      const T rstd = T(1) / std::sqrt(sum / static_cast<T>(d) + static_cast<T>(a.eps));
      scale_row(a.gate ? y : x, a.weight.ptr<T>(g), rstd, y, d);
      if (a.rstd) *a.rstd.ptr<T>(i, j, g) = rstd;
    }
  });
}

// With v' = v rstd and u = dy weight:  dv = rstd (u - v' mean(u v')).  The rows below share these names.

template <class T>
void backward_row(const T* dy, const T* x, const T* weight, T rstd, const T* dresidual, T* dx, T* dweight,
                  std::int64_t d) {
  T dot = 0;
#pragma omp simd reduction(+ : dot)
  for (std::int64_t i = 0; i < d; ++i) dot += dy[i] * weight[i] * x[i];
  const T mean = dot * rstd / static_cast<T>(d);
  const auto row = [&](auto residual) {
#pragma omp simd
    for (std::int64_t i = 0; i < d; ++i) {
      const T normed = x[i] * rstd;
      const T dv = rstd * (dy[i] * weight[i] - normed * mean);
      dweight[i] += dy[i] * normed;
      dx[i] = dv + residual(i);
    }
  };
  if (dresidual)
    row([dresidual](std::int64_t i) { return dresidual[i]; });
  else
    row([](std::int64_t) { return T(0); });
}

template <class T>
void gated_backward_row(const T* dy, const T* x, const T* gate, const T* weight, T rstd, const T* dresidual,
                        T* dx, T* dgate, T* dweight, T* sigmoids, std::int64_t d) {
  T dot = 0;
#pragma omp simd reduction(+ : dot)
  for (std::int64_t i = 0; i < d; ++i) {
    sigmoids[i] = sigmoid(gate[i]);
    dot += dy[i] * weight[i] * x[i] * gate[i] * sigmoids[i];
  }
  const T mean = dot * rstd / static_cast<T>(d);
  const auto row = [&](auto residual) {
#pragma omp simd
    for (std::int64_t i = 0; i < d; ++i) {
      const T s = sigmoids[i], silu = gate[i] * s, value = x[i];
      const T normed = value * silu * rstd;
      const T dv = rstd * (dy[i] * weight[i] - normed * mean);
      dweight[i] += dy[i] * normed;
      dgate[i] = dv * value * s * (T(1) + gate[i] * (T(1) - s));
      dx[i] = dv * silu + residual(i);
    }
  };
  if (dresidual)
    row([dresidual](std::int64_t i) { return dresidual[i]; });
  else
    row([](std::int64_t) { return T(0); });
}

template <class T>
void backward(const RmsNormBackward& a, const Stream& stream) {
  const std::int64_t t = a.x.dim(1), groups = a.x.dim(2), d = a.x.dim(3), tokens = a.x.dim(0) * t;
  const std::int64_t block = tokens_per_partial(tokens);
  const auto partial = [&](std::int64_t item, T* dweight) {
    std::vector<T> sigmoids(static_cast<std::size_t>(a.gate ? d : 0));
    for (std::int64_t row = item * block; row < std::min(tokens, (item + 1) * block); ++row) {
      const std::int64_t i = row / t, j = row % t;
      for (std::int64_t g = 0; g < groups; ++g) {
        const T* const dresidual = a.dresidual ? a.dresidual.ptr<T>(i, j, g) : nullptr;
        const T* const dy = a.dy.ptr<T>(i, j, g);
        const T* const x = a.x.ptr<T>(i, j, g);
        const T rstd = *a.rstd.ptr<T>(i, j, g);
        if (a.gate)
          gated_backward_row(dy, x, a.gate.ptr<T>(i, j, g), a.weight.ptr<T>(g), rstd, dresidual,
                             a.dx.ptr<T>(i, j, g), a.dgate.ptr<T>(i, j, g), dweight + g * d, sigmoids.data(),
                             d);
        else
          backward_row(dy, x, a.weight.ptr<T>(g), rstd, dresidual, a.dx.ptr<T>(i, j, g), dweight + g * d, d);
      }
    }
  };
  const auto dweight = sum_of_partials<T>((tokens + block - 1) / block, groups * d, stream, partial);
  for (std::int64_t g = 0; g < groups; ++g) {
    T* const out = a.dweight.ptr<T>(g);
    for (std::int64_t i = 0; i < d; ++i) out[i] += dweight[static_cast<std::size_t>(g * d + i)];
  }
}

}  // namespace

void rms_norm(const RmsNorm& arguments, const Stream& stream) {
  with_float(arguments.x.dtype(), "rms_norm", [&](auto zero) { forward<decltype(zero)>(arguments, stream); });
}

void rms_norm_backward(const RmsNormBackward& arguments, const Stream& stream) {
  with_float(arguments.x.dtype(), "rms_norm_backward",
             [&](auto zero) { backward<decltype(zero)>(arguments, stream); });
}

}  // namespace transmamba::cpu
