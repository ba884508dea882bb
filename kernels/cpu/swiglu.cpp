#include "kernels/swiglu.h"

#include "kernels/cpu/tokens.h"
#include "kernels/cpu/vector_math.h"

namespace transmamba::cpu {
namespace {

template <class T>
void forward_row(const T* gate, const T* up, T* y, std::int64_t f) {
#pragma omp simd
  for (std::int64_t k = 0; k < f; ++k) y[k] = silu(gate[k]) * up[k];
}

/// dgate and dup may alias gate and up.
template <class T>
void backward_row(const T* dy, const T* gate, const T* up, T* dgate, T* dup, std::int64_t f) {
#pragma omp simd
  for (std::int64_t k = 0; k < f; ++k) {
    const T g = gate[k], u = up[k], s = sigmoid(g);
    dgate[k] = dy[k] * u * s * (T(1) + g * (T(1) - s));
    dup[k] = dy[k] * g * s;
  }
}

template <class T>
void forward(const Swiglu& a, const Stream& stream) {
  const std::int64_t f = a.y.dim(2);
  for_each_token(a.y.dim(0), a.y.dim(1), 3 * f, stream, [&](std::int64_t i, std::int64_t j) {
    const T* const gate = a.gate_up.ptr<T>(i, j);
    forward_row(gate, gate + f, a.y.ptr<T>(i, j), f);
  });
}

template <class T>
void backward(const SwigluBackward& a, const Stream& stream) {
  const std::int64_t f = a.dy.dim(2);
  for_each_token(a.dy.dim(0), a.dy.dim(1), 5 * f, stream, [&](std::int64_t i, std::int64_t j) {
    const T* const gate = a.gate_up.ptr<T>(i, j);
    T* const dgate = a.dgate_up.ptr<T>(i, j);
    backward_row(a.dy.ptr<T>(i, j), gate, gate + f, dgate, dgate + f, f);
  });
}

}  // namespace

void swiglu(const Swiglu& arguments, const Stream& stream) {
  with_float(arguments.y.dtype(), "swiglu", [&](auto zero) { forward<decltype(zero)>(arguments, stream); });
}

void swiglu_backward(const SwigluBackward& arguments, const Stream& stream) {
  with_float(arguments.dy.dtype(), "swiglu_backward",
             [&](auto zero) { backward<decltype(zero)>(arguments, stream); });
}

}  // namespace transmamba::cpu
