#include "kernels/adamw.h"

namespace transmamba {

void adamw(const AdamW& a, const Stream& stream) {
  expect_rank(a.weight, "(length)", "adamw", "weight");
  const Shape& shape = a.weight.shape();
  const DType dtype = a.weight.dtype();
  expect(a.weight, shape, dtype, "adamw", "weight");
  expect(a.grad, shape, dtype, "adamw", "grad");
  expect(a.m, shape, dtype, "adamw", "m");
  expect(a.v, shape, dtype, "adamw", "v");
  expect_optional(a.rounded, shape, DType::bf16, "adamw", "rounded");
  expect_optional(a.squared_norm, {1}, DType::f64, "adamw", "squared_norm");
  expect_optional(a.loss, {1}, DType::f64, "adamw", "loss");
  check(a.step >= 1, "adamw", "step: expected 1 or more, got {}", a.step);
  run_on(stream, cpu::adamw, cuda::adamw, a);
}

}  // namespace transmamba
