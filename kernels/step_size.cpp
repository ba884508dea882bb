#include "kernels/step_size.h"

namespace transmamba {

void step_size(const StepSize& a, const Stream& stream) {
  constexpr auto op = "step_size";
  expect_rank(a.raw, "(b, t, h)", op, "raw");
  expect(a.raw, a.raw.shape(), a.raw.dtype(), op, "raw");
  expect(a.bias, {a.raw.dim(2)}, statistics_of(a.raw.dtype()), op, "bias");
  expect(a.dt, a.raw.shape(), statistics_of(a.raw.dtype()), op, "dt");
  run_on(stream, cpu::step_size, cuda::step_size, a);
}

void step_size_backward(const StepSizeBackward& a, const Stream& stream) {
  constexpr auto op = "step_size_backward";
  expect_rank(a.dt, "(b, t, h)", op, "dt");
  const DType statistics = statistics_of(a.draw.dtype());
  expect(a.ddt, a.dt.shape(), statistics, op, "ddt");
  expect(a.dt, a.dt.shape(), statistics, op, "dt");
  expect(a.draw, a.dt.shape(), a.draw.dtype(), op, "draw");
  expect(a.dbias, {a.dt.dim(2)}, statistics, op, "dbias");
  run_on(stream, cpu::step_size_backward, cuda::step_size_backward, a);
}

}  // namespace transmamba
