#include "kernels/conv.h"

#include "kernels/cuda/partials.cuh"

namespace transmamba::cuda {
namespace {

/// What forward and backward read.
template <class T>
struct Inputs {
  Strided<const T> x, halo, weight;
  const T* bias;
  std::int64_t b, t, c, w;

  template <class Arguments>
  explicit Inputs(const Arguments& a)
      : x(strided<const T>(a.x)),
        halo(strided<const T>(a.halo)),
        weight(strided<const T>(a.weight)),
        bias(a.bias.template ptr<T>()),
        b(a.x.dim(0)),
        t(a.x.dim(1)),
        c(a.x.dim(2)),
        w(a.weight.dim(1)) {}
  /// The input at `time`, which may lie up to w - 1 before the first token.
  __device__ T input(std::int64_t i, std::int64_t time, std::int64_t k) const {
    if (time >= 0) return x(i, time)[k];
    return halo.data ? halo(i, w - 1 + time)[k] : T(0);
  }
  __device__ T pre_activation(std::int64_t i, std::int64_t time, std::int64_t k) const {
    T sum = bias[k];
    for (std::int64_t j = 0; j < w; ++j) sum += weight(k)[j] * input(i, time - w + 1 + j, k);
    return sum;
  }
};

/// A thread an output.
template <class T>
__global__ void forward(Inputs<T> a, Strided<T> y) {
  const std::int64_t index = global_index();
  if (index >= a.b * a.t * a.c) return;
  const std::int64_t k = index % a.c, time = index / a.c % a.t, i = index / a.c / a.t;
  const T value = a.pre_activation(i, time, k);
  y(i, time)[k] = value * sigmoid(value);
}

/// d = dy SiLU'(pre-activation), (b, t, c) contiguous.
template <class T>
__global__ void activation_gradient(Inputs<T> a, Strided<const T> dy, T* d) {
  const std::int64_t index = global_index();
  if (index >= a.b * a.t * a.c) return;
  const std::int64_t k = index % a.c, time = index / a.c % a.t, i = index / a.c / a.t;
  d[index] = dy(i, time)[k] * silu_gradient(a.pre_activation(i, time, k));
}

/// dx_s = sum_j weight_j d_{s+w-1-j}. Rows before the first token are dhalo.
template <class T>
__global__ void input_gradient(Inputs<T> a, const T* d, Strided<T> dx, Strided<T> dhalo) {
  const std::int64_t index = global_index(), rows = a.t + a.w - 1;
  if (index >= a.b * rows * a.c) return;
  const std::int64_t k = index % a.c, s = index / a.c % rows - (a.w - 1), i = index / a.c / rows;
  if (s < 0 && !dhalo.data) return;
  T sum = 0;
  for (std::int64_t j = 0; j < a.w; ++j) {
    const std::int64_t time = s + a.w - 1 - j;
    if (0 <= time && time < a.t) sum += a.weight(k)[j] * d[(i * a.t + time) * a.c + k];
  }
  *(s < 0 ? dhalo(i, s + a.w - 1) + k : dx(i, s) + k) = sum;
}

/// dweight_j = sum_t d_t x_{t-w+1+j}, dbias = sum_t d_t, of a run of tokens. A thread a channel and a run.
template <class T>
__global__ void parameter_gradient(Inputs<T> a, const T* d, double* partials, Runs runs) {
  const std::int64_t k = global_index() % a.c, run = global_index() / a.c;
  if (run >= runs.count) return;
  double* const partial = partials + run * a.c * (a.w + 1);  // dweight (c, w), dbias (c)
  for (std::int64_t j = 0; j <= a.w; ++j) {
    double sum = 0;
    for (std::int64_t token = runs.begin(run); token < runs.end(run); ++token) {
      const T input = j < a.w ? a.input(token / a.t, token % a.t - a.w + 1 + j, k) : T(1);
      sum += static_cast<double>(d[token * a.c + k]) * static_cast<double>(input);
    }
    partial[j < a.w ? k * a.w + j : a.c * a.w + k] = sum;
  }
}

}  // namespace

void conv(const Conv& a, const Stream& stream) {
  dispatch_float(a.x.dtype(), "conv", [&](auto zero) {
    using T = decltype(zero);
    if (a.x.numel() == 0) return;
    launch("conv", stream, thread_each(a.x.numel()), forward<T>, Inputs<T>(a), strided<T>(a.y));
  });
}

void conv_backward(const ConvBackward& a, const Stream& stream) {
  constexpr auto op = "conv_backward";
  dispatch_float(a.x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t b = a.x.dim(0), t = a.x.dim(1), c = a.x.dim(2), w = a.weight.dim(1);
    if (b == 0 || c == 0) return;
    const Inputs<T> inputs(a);
    const Runs runs(b * t);
    const std::int64_t width = c * (w + 1);
    const Workspace<T> d(b * t * c, stream, op);
    launch(op, stream, thread_each(b * t * c), activation_gradient<T>, inputs, strided<const T>(a.dy),
           d.data());
    launch(op, stream, thread_each(b * (t + w - 1) * c), input_gradient<T>, inputs, d.data(),
           strided<T>(a.dx), strided<T>(a.dhalo));
    if (t == 0) return;
    const Workspace<double> sums(runs.count * width, stream, op);
    launch(op, stream, thread_each(runs.count * c), parameter_gradient<T>, inputs, d.data(), sums.data(),
           runs);
    launch(op, stream, thread_each(c * w), add_partials<T>, sums.data(), runs.count, width,
           strided<T>(a.dweight), c, w);
    launch(op, stream, thread_each(c), add_partials<T>, sums.data() + c * w, runs.count, width,
           strided<T>(a.dbias), 1, c);
  });
}

}  // namespace transmamba::cuda
