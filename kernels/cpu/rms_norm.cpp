#include "kernels/rms_norm.h"

#include <cmath>

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
    }
  });
}

// With v' = v rstd and u = dy weight:  dv = rstd (u - v' mean(u v')), in float64 (see the contract).

/// The two numbers of a row that dv needs, from sums of v^2 and u v.
struct RowScale {
  double rstd, mean;  // mean(u v')
  RowScale(double squares, double dot, std::int64_t d, double eps)
      : rstd(1 / std::sqrt(squares / static_cast<double>(d) + eps)),
        mean(dot * rstd / static_cast<double>(d)) {}
};

template <class T>
void backward_row(const T* dy, const T* x, const T* weight, double eps, const T* dresidual, T* dx, T* dweight,
                  std::int64_t d) {
  double squares = 0, dot = 0;
#pragma omp simd reduction(+ : squares, dot)
  for (std::int64_t i = 0; i < d; ++i) {
    const double v = x[i];
    squares += v * v;
    dot += static_cast<double>(dy[i]) * static_cast<double>(weight[i]) * v;
  }
  const RowScale scale(squares, dot, d, eps);
  const double rstd = scale.rstd, mean = scale.mean;
  const auto row = [&](auto residual) {
#pragma omp simd
    for (std::int64_t i = 0; i < d; ++i) {
      const double normed = static_cast<double>(x[i]) * rstd, dyi = dy[i];
      const double dv = rstd * (dyi * static_cast<double>(weight[i]) - normed * mean);
      dweight[i] += static_cast<T>(dyi * normed);
      dx[i] = static_cast<T>(dv + residual(i));
    }
  };
  if (dresidual)
    row([dresidual](std::int64_t i) { return static_cast<double>(dresidual[i]); });
  else
    row([](std::int64_t) { return 0.0; });
}

/// `silus` and `slopes` are scratch: SiLU(gate) and its derivative.
template <class T>
void gated_backward_row(const T* dy, const T* x, const T* gate, const T* weight, double eps,
                        const T* dresidual, T* dx, T* dgate, T* dweight, T* silus, T* slopes,
                        std::int64_t d) {
#pragma omp simd
  for (std::int64_t i = 0; i < d; ++i) {
    const T s = sigmoid(gate[i]);
    silus[i] = gate[i] * s;
    slopes[i] = s * (T(1) + gate[i] * (T(1) - s));
  }
  double squares = 0, dot = 0;
#pragma omp simd reduction(+ : squares, dot)
  for (std::int64_t i = 0; i < d; ++i) {
    const double v = static_cast<double>(x[i]) * static_cast<double>(silus[i]);
    squares += v * v;
    dot += static_cast<double>(dy[i]) * static_cast<double>(weight[i]) * v;
  }
  const RowScale scale(squares, dot, d, eps);
  const double rstd = scale.rstd, mean = scale.mean;
  const auto row = [&](auto residual) {
#pragma omp simd
    for (std::int64_t i = 0; i < d; ++i) {
      const double silu = silus[i], value = x[i], dyi = dy[i];
      const double normed = value * silu * rstd;
      const double dv = rstd * (dyi * static_cast<double>(weight[i]) - normed * mean);
      dweight[i] += static_cast<T>(dyi * normed);
      dgate[i] = static_cast<T>(dv * value * static_cast<double>(slopes[i]));
      dx[i] = static_cast<T>(dv * silu + residual(i));
    }
  };
  if (dresidual)
    row([dresidual](std::int64_t i) { return static_cast<double>(dresidual[i]); });
  else
    row([](std::int64_t) { return 0.0; });
}

template <class T>
void backward(const RmsNormBackward& a, const Stream& stream) {
  const std::int64_t t = a.x.dim(1), groups = a.x.dim(2), d = a.x.dim(3), tokens = a.x.dim(0) * t;
  const std::int64_t block = tokens_per_partial(tokens);
  const auto partial = [&](std::int64_t item, T* dweight) {
    Scratch<T> silus(static_cast<std::size_t>(a.gate ? d : 0)), slopes(silus.size());
    for (std::int64_t row = item * block; row < std::min(tokens, (item + 1) * block); ++row) {
      const std::int64_t i = row / t, j = row % t;
      for (std::int64_t g = 0; g < groups; ++g) {
        const T* const dresidual = a.dresidual ? a.dresidual.ptr<T>(i, j, g) : nullptr;
        const T* const dy = a.dy.ptr<T>(i, j, g);
        const T* const x = a.x.ptr<T>(i, j, g);
        if (a.gate)
          gated_backward_row(dy, x, a.gate.ptr<T>(i, j, g), a.weight.ptr<T>(g), a.eps, dresidual,
                             a.dx.ptr<T>(i, j, g), a.dgate.ptr<T>(i, j, g), dweight + g * d, silus.data(),
                             slopes.data(), d);
        else
          backward_row(dy, x, a.weight.ptr<T>(g), a.eps, dresidual, a.dx.ptr<T>(i, j, g), dweight + g * d, d);
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
