#include "kernels/cross_entropy.h"

#include "kernels/vocabulary.h"

namespace transmamba {
namespace {

/// Checks logits (b, t, V); returns (b, t).
Shape check_logits(const ConstView& logits, std::string_view op) {
  expect_rank(logits, "(b, t, V)", op, "logits");
  expect(logits, logits.shape(), logits.dtype(), op, "logits");
  return {logits.dim(0), logits.dim(1)};
}

/// Backends are told the size of the whole vocabulary.
template <class Arguments>
Arguments with_whole_vocabulary(const Arguments& a, std::string_view op) {
  Arguments out = a;
  out.vocab_size = whole_vocabulary(a.vocab_begin, a.logits.dim(2), a.vocab_size, op);
  return out;
}

}  // namespace

void cross_entropy_partial(const CrossEntropyPartial& a, const Stream& stream) {
  constexpr auto op = "cross_entropy_partial";
  const Shape tokens = check_logits(a.logits, op);
  const DType dtype = statistics_of(a.logits.dtype());
  expect(a.targets, tokens, DType::i32, op, "targets");
  expect(a.maximum, tokens, dtype, op, "maximum");
  expect(a.partial, {2, tokens[0], tokens[1]}, dtype, op, "partial");
  run_on(stream, cpu::cross_entropy_partial, cuda::cross_entropy_partial, with_whole_vocabulary(a, op));
}

void cross_entropy_rescale(const CrossEntropyRescale& a, const Stream& stream) {
  constexpr auto op = "cross_entropy_rescale";
  expect_rank(a.own, "(b, t)", op, "own");
  const Shape& tokens = a.own.shape();
  const DType dtype = a.own.dtype();
  expect(a.own, tokens, dtype, op, "own");
  expect(a.maximum, tokens, dtype, op, "maximum");
  expect(a.partial, {2, tokens[0], tokens[1]}, dtype, op, "partial");
  run_on(stream, cpu::cross_entropy_rescale, cuda::cross_entropy_rescale, a);
}

void cross_entropy_loss(const CrossEntropyLoss& a, const Stream& stream) {
  constexpr auto op = "cross_entropy_loss";
  expect_rank(a.maximum, "(b, t)", op, "maximum");
  const Shape& tokens = a.maximum.shape();
  const DType dtype = a.maximum.dtype();
  expect(a.maximum, tokens, dtype, op, "maximum");
  expect(a.partial, {2, tokens[0], tokens[1]}, dtype, op, "partial");
  expect(a.loss, tokens, dtype, op, "loss");
  expect(a.lse, tokens, dtype, op, "lse");
  run_on(stream, cpu::cross_entropy_loss, cuda::cross_entropy_loss, a);
}

void cross_entropy_backward(const CrossEntropyBackward& a, const Stream& stream) {
  constexpr auto op = "cross_entropy_backward";
  const Shape tokens = check_logits(a.logits, op);
  const DType dtype = a.logits.dtype();
  expect(a.targets, tokens, DType::i32, op, "targets");
  expect(a.lse, tokens, statistics_of(dtype), op, "lse");
  expect(a.dlogits, a.logits.shape(), dtype, op, "dlogits");
  run_on(stream, cpu::cross_entropy_backward, cuda::cross_entropy_backward, with_whole_vocabulary(a, op));
}

}  // namespace transmamba
