#include "kernels/cross_entropy.h"

namespace transmamba {

void cross_entropy(const CrossEntropy& a, const Stream& stream) {
  constexpr auto op = "cross_entropy";
  expect_rank(a.logits, "(b, t, V)", op, "logits");
  const Shape tokens{a.logits.dim(0), a.logits.dim(1)};
  const DType dtype = a.logits.dtype();
  expect(a.logits, a.logits.shape(), dtype, op, "logits");
  expect(a.targets, tokens, DType::i32, op, "targets");
  expect(a.loss, tokens, dtype, op, "loss");
  expect(a.lse, tokens, dtype, op, "lse");
  run_on(stream, cpu::cross_entropy, cuda::cross_entropy, a);
}

void cross_entropy_backward(const CrossEntropyBackward& a, const Stream& stream) {
  constexpr auto op = "cross_entropy_backward";
  expect_rank(a.logits, "(b, t, V)", op, "logits");
  const Shape tokens{a.logits.dim(0), a.logits.dim(1)};
  const DType dtype = a.logits.dtype();
  expect(a.logits, a.logits.shape(), dtype, op, "logits");
  expect(a.targets, tokens, DType::i32, op, "targets");
  expect(a.lse, tokens, dtype, op, "lse");
  expect(a.dlogits, a.logits.shape(), dtype, op, "dlogits");
  run_on(stream, cpu::cross_entropy_backward, cuda::cross_entropy_backward, a);
}

}  // namespace transmamba
