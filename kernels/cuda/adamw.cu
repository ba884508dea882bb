#include "kernels/adamw.h"

#include <cmath>
#include <limits>

#include "kernels/cuda/vectors.cuh"

namespace transmamba::cuda {
namespace {

/// The numbers of one step, rounded once.
template <class T>
struct Coefficients {
  static constexpr T kTiny = std::numeric_limits<T>::min() * T(1e8);
  double grad_scale, clip_grad;
  T lr, beta1, beta2, rest1, rest2, correction1, correction2, eps, weight_decay;
  explicit Coefficients(const AdamW& a)
      : grad_scale(a.grad_scale),
        clip_grad(a.clip_grad),
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
struct Buffers {
  T* weight;
  const T* grad;
  T *m, *v;
  bfloat16* rounded;
  const double *squared_norm, *loss;
};

/// Threads walk, so that each works out the clipping once.
template <int N, class T>
__global__ void update(Coefficients<T> c, Buffers<T> a, std::int64_t n) {
  if (a.loss && !isfinite(*a.loss)) return;
  double scale = c.grad_scale;
  if (a.squared_norm) {
    if (!isfinite(*a.squared_norm)) return;
    scale *= fmin(1.0, c.clip_grad / (sqrt(*a.squared_norm) + 1e-6));
  }
  const T grad_scale = static_cast<T>(scale);
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x * N;
  for (std::int64_t at = global_index() * N; at < n; at += step) {
    const auto grad = load_pack<N>(a.grad + at), weight = load_pack<N>(a.weight + at);
    const auto m = load_pack<N>(a.m + at), v = load_pack<N>(a.v + at);
    T means[N], squares[N], weights[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const T g = grad_scale * grad[i];
      const T mean = c.beta1 * m[i] + c.rest1 * g;
      const T square = c.beta2 * v[i] + c.rest2 * g * g;
      const T change = mean * c.correction1 / (sqrt(square * c.correction2) + c.eps);
      // As on the CPU, where moments that fade, of rare tokens say, would be subnormal for ever, and slow.
      means[i] = abs(mean) < Coefficients<T>::kTiny ? T(0) : mean;
      squares[i] = square < Coefficients<T>::kTiny ? T(0) : square;
      weights[i] = weight[i] - c.lr * (change + c.weight_decay * weight[i]);
    }
    store_pack(a.m + at, means);
    store_pack(a.v + at, squares);
    store_pack(a.weight + at, weights);
    if (!a.rounded) continue;
    float rounded[N];
#pragma unroll
    for (int i = 0; i < N; ++i) rounded[i] = static_cast<float>(weights[i]);
    store_pack(a.rounded + at, rounded);
  }
}

template <int N, class T>
void run(const AdamW& a, std::int64_t begin, std::int64_t n, const Stream& stream) {
  constexpr std::int64_t kMostBlocks = 4096;
  const Buffers<T> buffers{a.weight.ptr<T>() + begin,
                           a.grad.ptr<T>() + begin,
                           a.m.ptr<T>() + begin,
                           a.v.ptr<T>() + begin,
                           a.rounded ? a.rounded.ptr<bfloat16>() + begin : nullptr,
                           a.squared_norm ? a.squared_norm.ptr<double>() : nullptr,
                           a.loss ? a.loss.ptr<double>() : nullptr};
  Grid grid = thread_each(n / N);
  grid.blocks = std::min(grid.blocks, kMostBlocks);
  launch("adamw", stream, grid, update<N, T>, Coefficients<T>(a), buffers, n);
}

}  // namespace

void adamw(const AdamW& a, const Stream& stream) {
  dispatch_float(a.weight.dtype(), "adamw", [&](auto zero) {
    using T = decltype(zero);
    constexpr int kMost = 16 / sizeof(T);
    const std::int64_t n = a.weight.dim(0), whole = n / kMost * kMost;
    if (n == 0) return;
    const auto packed = [&](const ConstView& x) { return !x || in_packs(x.slice(0, 0, whole), kMost); };
    if (packed(a.weight) && packed(a.grad) && packed(a.m) && packed(a.v) && packed(a.rounded)) {
      run<kMost, T>(a, 0, whole, stream);
      run<1, T>(a, whole, n - whole, stream);
    } else {
      run<1, T>(a, 0, n, stream);
    }
  });
}

}  // namespace transmamba::cuda
