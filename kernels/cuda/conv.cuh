// The depthwise causal convolution of kernels/qkv_conv.h, a thread a number: of any type, width and window.
#pragma once

#include "kernels/cuda/partials.cuh"
#include "kernels/cuda/vectors.cuh"

namespace transmamba::cuda {

/// What forward and backward read.
template <class T>
struct ConvInputs {
  using S = Compute<T>;
  Strided<const T> x, halo;
  Strided<const S> weight;
  const S* bias;
  std::int64_t b, t, c, w;

  template <class Arguments>
  explicit ConvInputs(const Arguments& a)
      : x(strided<const T>(a.x)),
        halo(strided<const T>(a.halo)),
        weight(strided<const S>(a.weight)),
        bias(a.bias.template ptr<S>()),
        b(a.x.dim(0)),
        t(a.x.dim(1)),
        c(a.x.dim(2)),
        w(a.weight.dim(1)) {}
  /// The input at `time`, which may lie up to w - 1 before the first token.
  __device__ S input(std::int64_t i, std::int64_t time, std::int64_t k) const {
    if (time >= 0) return load(x(i, time) + k);
    return halo.data ? load(halo(i, w - 1 + time) + k) : S(0);
  }
  __device__ S pre_activation(std::int64_t i, std::int64_t time, std::int64_t k) const {
    S sum = bias[k];
    for (std::int64_t j = 0; j < w; ++j) sum += weight(k)[j] * input(i, time - w + 1 + j, k);
    return sum;
  }
};

/// dx_s = sum_j weight_j d_{s+w-1-j}. Rows before the first token are dhalo. d (b, t, c) contiguous is the
/// gradient of the pre-activation.
template <class T, class S = Compute<T>>
__global__ void conv_input_gradient(ConvInputs<T> a, const S* d, Strided<T> dx, Strided<T> dhalo) {
  const std::int64_t index = global_index(), rows = a.t + a.w - 1;
  if (index >= a.b * rows * a.c) return;
  const std::int64_t k = index % a.c, s = index / a.c % rows - (a.w - 1), i = index / a.c / rows;
  if (s < 0 && !dhalo.data) return;
  S sum = 0;
  for (std::int64_t j = 0; j < a.w; ++j) {
    const std::int64_t time = s + a.w - 1 - j;
    if (0 <= time && time < a.t) sum += a.weight(k)[j] * d[(i * a.t + time) * a.c + k];
  }
  store(s < 0 ? dhalo(i, s + a.w - 1) + k : dx(i, s) + k, sum);
}

/// dweight_j = sum_t d_t x_{t-w+1+j}, dbias = sum_t d_t, of a run of tokens. A thread a channel and a run.
template <class T, class S = Compute<T>>
__global__ void conv_parameter_gradient(ConvInputs<T> a, const S* d, double* partials, Runs runs) {
  const std::int64_t k = global_index() % a.c, run = global_index() / a.c;
  if (run >= runs.count) return;
  double* const partial = partials + run * a.c * (a.w + 1);  // dweight (c, w), dbias (c)
  for (std::int64_t j = 0; j <= a.w; ++j) {
    double sum = 0;
    for (std::int64_t token = runs.begin(run); token < runs.end(run); ++token) {
      const S input = j < a.w ? a.input(token / a.t, token % a.t - a.w + 1 + j, k) : S(1);
      sum += static_cast<double>(d[token * a.c + k]) * static_cast<double>(input);
    }
    partial[j < a.w ? k * a.w + j : a.c * a.w + k] = sum;
  }
}

/// Gradients of everything from that of the pre-activation.
template <class T, class Arguments>
void conv_gradients(std::string_view op, const Arguments& a, const Compute<T>* d, const Stream& stream) {
  using S = Compute<T>;
  const ConvInputs<T> inputs(a);
  const std::int64_t c = inputs.c, w = inputs.w;
  const Runs runs(inputs.b * inputs.t);
  launch(op, stream, thread_each(inputs.b * (inputs.t + w - 1) * c), conv_input_gradient<T>, inputs, d,
         strided<T>(a.dx), strided<T>(a.dhalo));
  if (inputs.t == 0) return;
  const std::int64_t pitch = c * (w + 1);
  const Workspace<double> sums(runs.count * pitch, stream, op);
  launch(op, stream, thread_each(runs.count * c), conv_parameter_gradient<T>, inputs, d, sums.data(), runs);
  launch_add_partials<double, S>(op, stream, sums.data(), runs.count, pitch,
                                 {a.dweight.template ptr<S>(), c * w, w, a.dweight.stride(0), 1},
                                 {a.dbias.template ptr<S>(), c, c, 0, 1});
}

}  // namespace transmamba::cuda
