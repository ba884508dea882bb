#include "kernels/qkv_conv.h"

namespace transmamba {
namespace {

/// Checks what forward and backward share; returns the shape of a halo.
template <class Arguments>
Shape check_inputs(const Arguments& a, const ConstView& k_rotated, std::string_view op) {
  expect_rank(a.x, "(b, t, c)", op, "x");
  expect_rank(a.weight, "(c, w)", op, "weight");
  const std::int64_t b = a.x.dim(0), t = a.x.dim(1), c = a.x.dim(2), w = a.weight.dim(1);
  const DType type = a.x.dtype(), statistics = statistics_of(type);
  check(w >= 1, op, "weight: expected (c, w) with w >= 1, got {}", a.weight.shape());
  check(a.heads > 0 && a.qk_width > 0 && c % a.heads == 0 && c / a.heads > 2 * a.qk_width, op,
        "channels: expected h (2n + p) with h = {}, n = {} and p > 0, got {}", a.heads, a.qk_width, c);
  check(0 <= a.rotated && a.rotated <= t && (a.rotated == 0 || a.qk_width % 2 == 0), op,
        "rotated: expected 0 to {} tokens of even width, got {} of width {}", t, a.rotated, a.qk_width);
  expect(a.x, a.x.shape(), type, op, "x");
  expect_optional(a.halo, {b, w - 1, c}, type, op, "halo");
  expect(a.weight, {c, w}, statistics, op, "weight");
  expect(a.bias, {c}, statistics, op, "bias");
  expect_optional(k_rotated, {b, a.rotated, a.heads, a.qk_width}, type, op, "k_rotated");
  return {b, w - 1, c};
}

}  // namespace

void qkv_conv(const QkvConv& a, const Stream& stream) {
  constexpr auto op = "qkv_conv";
  check_inputs(a, a.k_rotated, op);
  expect(a.y, a.x.shape(), a.x.dtype(), op, "y");
  check(a.y.raw() != a.x.raw() || a.x.numel() == 0, op, "y: must not alias x");
  run_on(stream, cpu::qkv_conv, cuda::qkv_conv, a);
}

void qkv_conv_backward(const QkvConvBackward& a, const Stream& stream) {
  constexpr auto op = "qkv_conv_backward";
  const DType type = a.x.dtype();
  const Shape halo = check_inputs(a, a.dk_rotated, op);
  expect(a.dy, a.x.shape(), type, op, "dy");
  expect(a.dx, a.x.shape(), type, op, "dx");
  expect_optional(a.dhalo, halo, type, op, "dhalo");
  expect(a.dweight, a.weight.shape(), statistics_of(type), op, "dweight");
  expect(a.dbias, a.bias.shape(), statistics_of(type), op, "dbias");
  check(a.dx.raw() != a.dy.raw() || a.x.numel() == 0, op, "dx: must not alias dy");
  run_on(stream, cpu::qkv_conv_backward, cuda::qkv_conv_backward, a);
}

}  // namespace transmamba
