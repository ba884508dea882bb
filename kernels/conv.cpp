#include "kernels/conv.h"

namespace transmamba {
namespace {

/// Checks what forward and backward share; returns the shape of a halo.
template <class Arguments>
Shape check_inputs(const Arguments& a, std::string_view op) {
  expect_rank(a.x, "(b, t, c)", op, "x");
  expect_rank(a.weight, "(c, w)", op, "weight");
  const Shape& shape = a.x.shape();
  const std::int64_t w = a.weight.dim(1);
  check(w >= 1, op, "weight: expected (c, w) with w >= 1, got {}", a.weight.shape());
  const Shape halo{shape[0], w - 1, shape[2]};
  expect(a.x, shape, a.x.dtype(), op, "x");
  expect_optional(a.halo, halo, a.x.dtype(), op, "halo");
  expect(a.weight, {shape[2], w}, statistics_of(a.x.dtype()), op, "weight");
  expect(a.bias, {shape[2]}, statistics_of(a.x.dtype()), op, "bias");
  return halo;
}

}  // namespace

void conv(const Conv& a, const Stream& stream) {
  constexpr auto op = "conv";
  check_inputs(a, op);
  expect(a.y, a.x.shape(), a.x.dtype(), op, "y");
  check(a.y.raw() != a.x.raw() || a.x.numel() == 0, op, "y: must not alias x");
  run_on(stream, cpu::conv, cuda::conv, a);
}

void conv_backward(const ConvBackward& a, const Stream& stream) {
  constexpr auto op = "conv_backward";
  const DType dtype = a.x.dtype();
  const Shape halo = check_inputs(a, op);
  expect(a.dy, a.x.shape(), dtype, op, "dy");
  expect(a.dx, a.x.shape(), dtype, op, "dx");
  expect_optional(a.dhalo, halo, dtype, op, "dhalo");
  expect(a.dweight, a.weight.shape(), statistics_of(dtype), op, "dweight");
  expect(a.dbias, a.bias.shape(), statistics_of(dtype), op, "dbias");
  check(a.dx.raw() != a.dy.raw() || halo[1] == 0 || a.x.numel() == 0, op, "dx: may alias dy only if w = 1");
  run_on(stream, cpu::conv_backward, cuda::conv_backward, a);
}

}  // namespace transmamba
