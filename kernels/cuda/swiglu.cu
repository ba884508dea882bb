#include "kernels/swiglu.h"

#include "kernels/cuda/device.cuh"

namespace transmamba::cuda {
namespace {

/// A thread an element of (b, t, f).
struct Place {
  std::int64_t i, j, k;
  __device__ Place(std::int64_t t, std::int64_t f)
      : i(global_index() / f / t), j(global_index() / f % t), k(global_index() % f) {}
};

template <class T>
__global__ void forward(Strided<const T> gate_up, Strided<T> y, std::int64_t t, std::int64_t f,
                        std::int64_t size) {
  if (global_index() >= size) return;
  const Place at(t, f);
  const T* const row = gate_up(at.i, at.j);
  y(at.i, at.j)[at.k] = row[at.k] * sigmoid(row[at.k]) * row[f + at.k];
}

template <class T>
__global__ void backward(Strided<const T> dy, Strided<const T> gate_up, Strided<T> dgate_up, std::int64_t t,
                         std::int64_t f, std::int64_t size) {
  if (global_index() >= size) return;
  const Place at(t, f);
  const T gate = gate_up(at.i, at.j)[at.k], up = gate_up(at.i, at.j)[f + at.k], d = dy(at.i, at.j)[at.k];
  T* const out = dgate_up(at.i, at.j);
  out[at.k] = d * up * silu_gradient(gate);
  out[f + at.k] = d * gate * sigmoid(gate);
}

}  // namespace

void swiglu(const Swiglu& a, const Stream& stream) {
  dispatch_float(a.y.dtype(), "swiglu", [&](auto zero) {
    using T = decltype(zero);
    launch("swiglu", stream, thread_each(a.y.numel()), forward<T>, strided<const T>(a.gate_up),
           strided<T>(a.y), a.y.dim(1), a.y.dim(2), a.y.numel());
  });
}

void swiglu_backward(const SwigluBackward& a, const Stream& stream) {
  dispatch_float(a.dy.dtype(), "swiglu_backward", [&](auto zero) {
    using T = decltype(zero);
    launch("swiglu_backward", stream, thread_each(a.dy.numel()), backward<T>, strided<const T>(a.dy),
           strided<const T>(a.gate_up), strided<T>(a.dgate_up), a.dy.dim(1), a.dy.dim(2), a.dy.numel());
  });
}

}  // namespace transmamba::cuda
