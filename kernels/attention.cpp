#include "kernels/attention.h"

namespace transmamba {
namespace {

void check_forward(std::string_view op, const ConstView& q, const ConstView& k, const ConstView& v,
                   const ConstView& o, const ConstView& lse, std::int64_t offset) {
  check(q.rank() == 4 && k.rank() == 4 && v.rank() == 4, op,
        "q, k, v: expected 4 dims (b, t, h, width), got {}, {}, {}", to_string(q.shape()),
        to_string(k.shape()), to_string(v.shape()));
  const std::int64_t b = q.dim(0), tq = q.dim(1), h = q.dim(2), n = q.dim(3), tk = k.dim(1), p = v.dim(3);
  const DType type = q.dtype();
  expect(q, {b, tq, h, n}, type, op, "q");
  expect(k, {b, tk, h, n}, type, op, "k");
  expect(v, {b, tk, h, p}, type, op, "v");
  expect(o, {b, tq, h, p}, type, op, "o");
  expect(lse, {b, h, tq}, statistics_of(type), op, "lse");
  check(offset >= 0 && (tq == 0 || tk > 0), op,
        "offset: every query must see a key, got offset {} with {} queries and {} keys", offset, tq, tk);
}

}  // namespace

void attention(const Attention& a, const Stream& stream) {
  check_forward("attention", a.q, a.k, a.v, a.o, a.lse, a.offset);
  run_on(stream, cpu::attention, cuda::attention, a);
}

void attention_backward(const AttentionBackward& a, const Stream& stream) {
  const std::string_view op = "attention_backward";
  check_forward(op, a.q, a.k, a.v, a.o, a.lse, a.offset);
  expect(a.dout, a.o.shape(), a.q.dtype(), op, "dout");
  expect(a.dq, a.q.shape(), a.q.dtype(), op, "dq");
  expect(a.dk, a.k.shape(), a.q.dtype(), op, "dk");
  expect(a.dv, a.v.shape(), a.q.dtype(), op, "dv");
  run_on(stream, cpu::attention_backward, cuda::attention_backward, a);
}

}  // namespace transmamba
