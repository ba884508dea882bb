#include "kernels/elementwise.h"

namespace transmamba {

void fill(const Fill& a, const Stream& stream) {
  expect(a.y, a.y.shape(), a.y.dtype(), "fill", "y");
  run_on(stream, cpu::fill, cuda::fill, a);
}

void copy(const Copy& a, const Stream& stream) {
  expect(a.x, a.x.shape(), a.x.dtype(), "copy", "x");
  expect(a.y, a.x.shape(), a.y.dtype(), "copy", "y");
  run_on(stream, cpu::copy, cuda::copy, a);
}

void add(const Add& a, const Stream& stream) {
  expect(a.x, a.x.shape(), a.x.dtype(), "add", "x");
  expect(a.y, a.x.shape(), a.x.dtype(), "add", "y");
  run_on(stream, cpu::add, cuda::add, a);
}

void sum(const Sum& a, const Stream& stream) {
  expect(a.x, a.x.shape(), a.x.dtype(), "sum", "x");
  check(a.x.contiguous(), "sum", "x: expected a contiguous view, got {} with strides {}", a.x.shape(),
        a.x.strides());
  expect(a.result, {1}, DType::f64, "sum", "result");
  run_on(stream, cpu::sum, cuda::sum, a);
}

}  // namespace transmamba
