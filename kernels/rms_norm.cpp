#include "kernels/rms_norm.h"

namespace transmamba {

void rms_norm(const RmsNorm& a, const Stream& stream) {
  constexpr auto op = "rms_norm";
  expect_rank(a.x, "(b, t, g, d)", op, "x");
  const Shape& shape = a.x.shape();
  const DType dtype = a.x.dtype();
  expect(a.x, shape, dtype, op, "x");
  expect_optional(a.gate, shape, dtype, op, "gate");
  expect(a.weight, {shape[2], shape[3]}, statistics_of(dtype), op, "weight");
  expect(a.y, shape, dtype, op, "y");
  run_on(stream, cpu::rms_norm, cuda::rms_norm, a);
}

void rms_norm_backward(const RmsNormBackward& a, const Stream& stream) {
  constexpr auto op = "rms_norm_backward";
  expect_rank(a.x, "(b, t, g, d)", op, "x");
  const Shape& shape = a.x.shape();
  const DType dtype = a.x.dtype();
  expect(a.dy, shape, dtype, op, "dy");
  expect(a.x, shape, dtype, op, "x");
  expect_optional(a.gate, shape, dtype, op, "gate");
  expect(a.weight, {shape[2], shape[3]}, statistics_of(dtype), op, "weight");
  expect_optional(a.dresidual, shape, dtype, op, "dresidual");
  expect(a.dx, shape, dtype, op, "dx");
  if (a.gate) expect(a.dgate, shape, dtype, op, "dgate");
  check(a.gate || !a.dgate || a.x.numel() == 0, op, "dgate: given without a gate");
  expect(a.dweight, {shape[2], shape[3]}, statistics_of(dtype), op, "dweight");
  run_on(stream, cpu::rms_norm_backward, cuda::rms_norm_backward, a);
}

}  // namespace transmamba
