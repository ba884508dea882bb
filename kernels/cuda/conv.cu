#include "kernels/conv.h"

#include "kernels/cuda/conv.cuh"

namespace transmamba::cuda {
namespace {

/// A thread an output.
template <class T>
__global__ void forward(ConvInputs<T> a, Strided<T> y) {
  const std::int64_t index = global_index();
  if (index >= a.b * a.t * a.c) return;
  const std::int64_t k = index % a.c, time = index / a.c % a.t, i = index / a.c / a.t;
  const Compute<T> value = a.pre_activation(i, time, k);
  store(y(i, time) + k, value * sigmoid_for<T>(value));
}

/// d = dy SiLU'(pre-activation), (b, t, c) contiguous.
template <class T>
__global__ void activation_gradient(ConvInputs<T> a, Strided<const T> dy, Compute<T>* d) {
  const std::int64_t index = global_index();
  if (index >= a.b * a.t * a.c) return;
  const std::int64_t k = index % a.c, time = index / a.c % a.t, i = index / a.c / a.t;
  const Compute<T> value = a.pre_activation(i, time, k);
  d[index] = load(dy(i, time) + k) * silu_gradient_for<T>(value, sigmoid_for<T>(value));
}

}  // namespace

void conv(const Conv& a, const Stream& stream) {
  dispatch_storage(a.x.dtype(), "conv", [&](auto zero) {
    using T = decltype(zero);
    if (a.x.numel() == 0) return;
    launch("conv", stream, thread_each(a.x.numel()), forward<T>, ConvInputs<T>(a), strided<T>(a.y));
  });
}

void conv_backward(const ConvBackward& a, const Stream& stream) {
  constexpr auto op = "conv_backward";
  dispatch_storage(a.x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t b = a.x.dim(0), t = a.x.dim(1), c = a.x.dim(2);
    if (b == 0 || c == 0) return;
    const Workspace<Compute<T>> d(b * t * c, stream, op);
    launch(op, stream, thread_each(b * t * c), activation_gradient<T>, ConvInputs<T>(a),
           strided<const T>(a.dy), d.data());
    conv_gradients<T>(op, a, d.data(), stream);
  });
}

}  // namespace transmamba::cuda
