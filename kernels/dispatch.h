// How a kernel contract reaches its implementation.
//
// kernels/<op>.h        states the contract: an argument struct and TRANSMAMBA_KERNEL(op, Arguments).
// kernels/<op>.cpp      checks shapes and types once for every backend, then calls run_on().
// kernels/cpu/<op>.cpp  defines cpu::op, kernels/cuda/<op>.cu defines cuda::op;
// kernels/no_cuda.cpp   stands in for the latter in a build without CUDA: it throws and names the op.
#pragma once

#include <algorithm>
#include <string_view>

#include "kernels/types.h"

/// Declares op(arguments, stream) and its two backends.
#define TRANSMAMBA_KERNEL(op, Arguments)    \
  namespace cpu {                           \
  void op(const Arguments&, const Stream&); \
  }                                         \
  namespace cuda {                          \
  void op(const Arguments&, const Stream&); \
  }                                         \
  void op(const Arguments& arguments, const Stream& stream)

namespace transmamba {

template <class Arguments>
void run_on(const Stream& stream, void (*on_cpu)(const Arguments&, const Stream&),
            void (*on_cuda)(const Arguments&, const Stream&), const Arguments& arguments) {
  (stream.device == Device::cpu ? on_cpu : on_cuda)(arguments, stream);
}

/// Calls f(T{}) with the C++ type of a floating-point dtype that the CPU backend computes in.
template <class F>
void with_float(DType dtype, std::string_view op, F&& f) {
  if (dtype == DType::f32) return f(float{});
  if (dtype == DType::f64) return f(double{});
  fail(op, "element type: the CPU backend computes in float32 and float64, got {}", dtype);
}

/// Requires `view` to have as many dims as `letters` has names, "(b, t, c)" say, before they are read.
inline void expect_rank(const ConstView& view, std::string_view letters, std::string_view op,
                        std::string_view name) {
  const auto rank = 1 + std::count(letters.begin(), letters.end(), ',');
  check(view.rank() == rank, op, "{}: expected {}, got {}", name, letters, view.shape());
}

/// Requires `view` to have this shape, unit stride in its last dim, and (unless absent) this dtype.
inline void expect(const ConstView& view, const Shape& shape, DType dtype, std::string_view op,
                   std::string_view name) {
  check(static_cast<bool>(view) || shape.numel() == 0, op, "{}: expected shape {}, got nothing", name, shape);
  check(view.shape() == shape, op, "{}: expected shape {}, got {}", name, shape, view.shape());
  check(view.dtype() == dtype, op, "{}: expected {}, got {}", name, dtype, view.dtype());
  check(shape.rank() == 0 || shape[shape.rank() - 1] <= 1 || view.stride(shape.rank() - 1) == 1, op,
        "{}: the last dim must have stride 1, got strides {}", name, view.strides());
}

/// The same for an argument that may be left out.
inline void expect_optional(const ConstView& view, const Shape& shape, DType dtype, std::string_view op,
                            std::string_view name) {
  if (view) expect(view, shape, dtype, op, name);
}

}  // namespace transmamba
