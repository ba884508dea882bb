// A block a head of a sequence; a thread owns elements of its state through all segments.
#include "kernels/cuda/device.cuh"
#include "kernels/ssd.h"

namespace transmamba::cuda {
namespace {

template <class T>
__global__ void combine(Strided<const T> log_decay, Strided<const T> local, Strided<T> states,
                        std::int64_t segments, std::int64_t heads, std::int64_t n, std::int64_t p) {
  const std::int64_t b = blockIdx.x / heads, h = blockIdx.x % heads;
  for (std::int64_t item = threadIdx.x; item < n * p; item += blockDim.x) {
    const std::int64_t i = item / p, j = item % p;
    T state = 0;
    for (std::int64_t k = 0; k < segments; ++k) {
      states(k, b, h, i)[j] = state;
      if (k + 1 < segments) state = exp(*log_decay(k, b, h)) * state + local(k, b, h, i)[j];
    }
  }
}

/// dlocal may alias dstates: an element is read before it is written, by the same thread.
template <class T>
__global__ void combine_backward(Strided<const T> dstates, Strided<const T> log_decay, Strided<T> dlocal,
                                 std::int64_t segments, std::int64_t heads, std::int64_t n, std::int64_t p) {
  const std::int64_t b = blockIdx.x / heads, h = blockIdx.x % heads;
  for (std::int64_t item = threadIdx.x; item < n * p; item += blockDim.x) {
    const std::int64_t i = item / p, j = item % p;
    T adj = 0;
    for (std::int64_t k = segments - 1; k >= 0; --k) {
      const T after = adj;
      adj = dstates(k, b, h, i)[j] + exp(*log_decay(k, b, h)) * after;
      dlocal(k, b, h, i)[j] = after;
    }
  }
}

}  // namespace

void ssd_combine(const SsdCombine& a, const Stream& stream) {
  dispatch_float(a.states.dtype(), "ssd_combine", [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t b = a.states.dim(1), heads = a.states.dim(2);
    launch("ssd_combine", stream, {b * heads}, combine<T>, strided<const T>(a.log_decay),
           strided<const T>(a.local), strided<T>(a.states), a.states.dim(0), heads, a.states.dim(3),
           a.states.dim(4));
  });
}

void ssd_combine_backward(const SsdCombineBackward& a, const Stream& stream) {
  constexpr auto op = "ssd_combine_backward";
  dispatch_float(a.dlocal.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t b = a.dlocal.dim(1), heads = a.dlocal.dim(2);
    launch(op, stream, {b * heads}, combine_backward<T>, strided<const T>(a.dstates),
           strided<const T>(a.log_decay), strided<T>(a.dlocal), a.dlocal.dim(0), heads, a.dlocal.dim(3),
           a.dlocal.dim(4));
  });
}

}  // namespace transmamba::cuda
