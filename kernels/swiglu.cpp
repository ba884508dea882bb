#include "kernels/swiglu.h"

namespace transmamba {
namespace {

Shape packed(const ConstView& y, std::string_view op, std::string_view name) {
  expect_rank(y, "(b, t, f)", op, name);
  return {y.dim(0), y.dim(1), 2 * y.dim(2)};
}

}  // namespace

void swiglu(const Swiglu& a, const Stream& stream) {
  const DType dtype = a.gate_up.dtype();
  expect(a.gate_up, packed(a.y, "swiglu", "y"), dtype, "swiglu", "gate_up");
  expect(a.y, a.y.shape(), dtype, "swiglu", "y");
  run_on(stream, cpu::swiglu, cuda::swiglu, a);
}

void swiglu_backward(const SwigluBackward& a, const Stream& stream) {
  constexpr auto op = "swiglu_backward";
  const DType dtype = a.gate_up.dtype();
  const Shape shape = packed(a.dy, op, "dy");
  expect(a.dy, a.dy.shape(), dtype, op, "dy");
  expect(a.gate_up, shape, dtype, op, "gate_up");
  expect(a.dgate_up, shape, dtype, op, "dgate_up");
  run_on(stream, cpu::swiglu_backward, cuda::swiglu_backward, a);
}

}  // namespace transmamba
