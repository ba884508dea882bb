#include "kernels/cpu/rope.h"

#include <cmath>
#include <vector>

#include "kernels/cpu/tokens.h"

namespace transmamba::cpu {
namespace {

/// Cosines and sines of the angles of t tokens, (t, n/2) each. Calls of libm would cost more than the rest of
/// the kernel: token kStep q + r is turned by the product of two rotations, of which there are few.
template <class T>
struct Table {
  static constexpr std::int64_t kStep = 32;
  Scratch<T> cosine, sine;

  Table(const Rope& a, const Stream& stream) {
    const std::int64_t t = a.x.dim(1), half = a.x.dim(3) / 2;
    const std::int64_t fine = std::min(t, kStep), coarse = (t + kStep - 1) / kStep;
    std::vector<double> c(static_cast<std::size_t>((fine + coarse) * half)), s(c.size());
    parallel_for(fine + coarse, stream, [&](std::int64_t i) {
      const auto turns = static_cast<double>(i < fine ? i : a.position + (i - fine) * kStep);
      for (std::int64_t k = 0; k < half; ++k) {
        const double angle = turns * std::pow(a.theta, -static_cast<double>(k) / static_cast<double>(half));
        c[static_cast<std::size_t>(i * half + k)] = std::cos(angle);
        s[static_cast<std::size_t>(i * half + k)] = a.inverse ? -std::sin(angle) : std::sin(angle);
      }
    });
    cosine.resize(static_cast<std::size_t>(t * half));
    sine.resize(cosine.size());
    parallel_for(coarse, stream, [&](std::int64_t q) {
      const double* const cq = c.data() + (fine + q) * half;
      const double* const sq = s.data() + (fine + q) * half;
      for (std::int64_t r = 0; r < std::min(kStep, t - q * kStep); ++r)
        multiply(cq, sq, c.data() + r * half, s.data() + r * half, (q * kStep + r) * half, half);
    });
  }
  void multiply(const double* c1, const double* s1, const double* c2, const double* s2, std::int64_t at,
                std::int64_t half) {
    T* const c = cosine.data() + at;
    T* const s = sine.data() + at;
#pragma omp simd
    for (std::int64_t k = 0; k < half; ++k) {
      c[k] = static_cast<T>(c1[k] * c2[k] - s1[k] * s2[k]);
      s[k] = static_cast<T>(s1[k] * c2[k] + c1[k] * s2[k]);
    }
  }
};

/// One head of one token; y may alias x.
template <class T>
void rotate(const T* x, const T* cosine, const T* sine, T* y, std::int64_t half) {
#pragma omp simd
  for (std::int64_t k = 0; k < half; ++k) {
    const T u = x[k], v = x[k + half];
    y[k] = u * cosine[k] - v * sine[k];
    y[k + half] = v * cosine[k] + u * sine[k];
  }
}

template <class T>
void run(const Rope& a, const Stream& stream) {
  const std::int64_t h = a.x.dim(2), half = a.x.dim(3) / 2;
  if (a.x.numel() == 0) return;
  const Table<T> table(a, stream);
  for_each_token(a.x.dim(0), a.x.dim(1), h * 2 * half, stream, [&](std::int64_t i, std::int64_t j) {
    const T* const x = a.x.ptr<T>(i, j);
    T* const y = a.y.ptr<T>(i, j);
    for (std::int64_t head = 0; head < h; ++head)
      rotate(x + head * a.x.stride(2), table.cosine.data() + j * half, table.sine.data() + j * half,
             y + head * a.y.stride(2), half);
  });
}

}  // namespace

void rope(const Rope& arguments, const Stream& stream) {
  with_float(arguments.x.dtype(), "qkv_conv", [&](auto zero) { run<decltype(zero)>(arguments, stream); });
}

}  // namespace transmamba::cpu
