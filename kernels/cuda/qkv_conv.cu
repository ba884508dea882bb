#include "kernels/qkv_conv.h"

#include "kernels/cuda/conv.cuh"
#include "kernels/cuda/qkv_conv.cuh"

namespace transmamba::cuda {
namespace {

/// What RoPE does to channel k of token `time`.
struct Rotation {
  std::int64_t qk, n;  // q has `qk` channels, and k; a head has n
  std::int64_t rotated, position;
  double theta;

  template <class Arguments>
  explicit Rotation(const Arguments& a)
      : qk(a.heads * a.qk_width), n(a.qk_width), rotated(a.rotated), position(a.position), theta(a.theta) {}
  __device__ bool turns(std::int64_t time, std::int64_t k) const { return time < rotated && k < 2 * qk; }
  __device__ bool first_half(std::int64_t k) const { return k % n < n / 2; }
  __device__ std::int64_t partner(std::int64_t k) const { return first_half(k) ? k + n / 2 : k - n / 2; }
  /// x at k, turned, given also the number at its partner; `sign` -1 turns back.
  template <class S>
  __device__ S turn(std::int64_t time, std::int64_t k, S x, S partner, int sign) const {
    double sine, cosine;
    const double pair = static_cast<double>(k % n % (n / 2)) / static_cast<double>(n / 2);
    sincos(static_cast<double>(position + time) * pow(theta, -pair), &sine, &cosine);
    return x * static_cast<S>(cosine) + partner * static_cast<S>(first_half(k) ? -sign * sine : sign * sine);
  }
};

/// A thread an output.
template <class T>
__global__ void forward(ConvInputs<T> a, Rotation rotation, Strided<T> y, Strided<T> k_rotated) {
  using S = Compute<T>;
  const std::int64_t index = global_index();
  if (index >= a.b * a.t * a.c) return;
  const std::int64_t k = index % a.c, time = index / a.c % a.t, i = index / a.c / a.t;
  const auto activated = [&](std::int64_t channel) {
    const S value = a.pre_activation(i, time, channel);
    return value * sigmoid_for<T>(value);
  };
  const S u = activated(k);
  T* const out = y(i, time) + k;
  if (!rotation.turns(time, k)) return store(out, u);
  const S turned = rotation.turn(time, k, u, activated(rotation.partner(k)), 1);
  if (k < rotation.qk || !k_rotated.data) return store(out, turned);
  const std::int64_t at = k - rotation.qk;
  store(out, u);
  store(k_rotated(i, time, at / rotation.n) + at % rotation.n, turned);
}

/// d = du SiLU'(pre-activation), (b, t, c) contiguous; du is dy turned back.
template <class T>
__global__ void activation_gradient(ConvInputs<T> a, Rotation rotation, Strided<const T> dy,
                                    Strided<const T> dk_rotated, Compute<T>* d) {
  using S = Compute<T>;
  const std::int64_t index = global_index();
  if (index >= a.b * a.t * a.c) return;
  const std::int64_t k = index % a.c, time = index / a.c % a.t, i = index / a.c / a.t;
  S du = load(dy(i, time) + k);
  if (rotation.turns(time, k)) {
    const std::int64_t partner = rotation.partner(k);
    if (k < rotation.qk || !dk_rotated.data) {
      du = rotation.turn(time, k, du, load(dy(i, time) + partner), -1);
    } else {
      const std::int64_t at = k - rotation.qk, head = at / rotation.n;
      const T* const row = dk_rotated(i, time, head) - head * rotation.n - rotation.qk;
      du += rotation.turn(time, k, load(row + k), load(row + partner), -1);
    }
  }
  const S value = a.pre_activation(i, time, k);
  d[index] = du * silu_gradient_for<T>(value, sigmoid_for<T>(value));
}

}  // namespace

void qkv_conv(const QkvConv& a, const Stream& stream) {
  constexpr auto op = "qkv_conv";
  if (a.x.numel() == 0) return;
  if (can_walk(a)) return qkv_conv_walk(a, stream);
  dispatch_storage(a.x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    launch(op, stream, thread_each(a.x.numel()), forward<T>, ConvInputs<T>(a), Rotation(a), strided<T>(a.y),
           strided<T>(a.k_rotated));
  });
}

void qkv_conv_backward(const QkvConvBackward& a, const Stream& stream) {
  constexpr auto op = "qkv_conv_backward";
  if (a.x.dim(0) == 0) return;
  if (can_walk(a)) return qkv_conv_backward_walk(a, stream);
  dispatch_storage(a.x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    const Workspace<Compute<T>> d(a.x.numel(), stream, op);
    launch(op, stream, thread_each(a.x.numel()), activation_gradient<T>, ConvInputs<T>(a), Rotation(a),
           strided<const T>(a.dy), strided<const T>(a.dk_rotated), d.data());
    conv_gradients<T>(op, a, d.data(), stream);
  });
}

}  // namespace transmamba::cuda
