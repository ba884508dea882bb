#include "kernels/rope.h"

namespace transmamba {

void rope(const Rope& a, const Stream& stream) {
  expect_rank(a.x, "(b, t, h, n)", "rope", "x");
  expect(a.x, a.x.shape(), a.x.dtype(), "rope", "x");
  expect(a.y, a.x.shape(), a.x.dtype(), "rope", "y");
  check(a.x.dim(3) % 2 == 0, "rope", "x: expected an even width n, got {}", a.x.dim(3));
  check(a.theta > 0, "rope", "theta: expected a positive base, got {}", a.theta);
  run_on(stream, cpu::rope, cuda::rope, a);
}

}  // namespace transmamba
