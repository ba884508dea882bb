#include "kernels/ssd.h"

namespace transmamba {
namespace {

struct Extents {
  std::int64_t b, t, h, n, p;
  DType type, statistics;
};

/// Shapes of what every SSD op reads.
Extents check_inputs(std::string_view op, const ConstView& k, const ConstView& v, const ConstView& dt,
                     const ConstView& a_log, const ConstView& state_in) {
  check(k.rank() == 4 && v.rank() == 4, op, "k, v: expected 4 dims (b, t, h, width), got {}, {}",
        to_string(k.shape()), to_string(v.shape()));
  const Extents e{k.dim(0), k.dim(1), k.dim(2), k.dim(3), v.dim(3), k.dtype(), statistics_of(k.dtype())};
  expect(k, {e.b, e.t, e.h, e.n}, e.type, op, "k");
  expect(v, {e.b, e.t, e.h, e.p}, e.type, op, "v");
  expect(dt, {e.b, e.t, e.h}, e.statistics, op, "dt");
  expect(a_log, {e.h}, e.statistics, op, "a_log");
  expect_optional(state_in, {e.b, e.h, e.n, e.p}, e.statistics, op, "state_in");
  return e;
}

}  // namespace

void ssd_summary(const SsdSummary& a, const Stream& stream) {
  const std::string_view op = "ssd_summary";
  const Extents e = check_inputs(op, a.k, a.v, a.dt, a.a_log, a.state_in);
  expect(a.state_out, {e.b, e.h, e.n, e.p}, e.statistics, op, "state_out");
  expect_optional(a.log_decay, {e.b, e.h}, e.statistics, op, "log_decay");
  run_on(stream, cpu::ssd_summary, cuda::ssd_summary, a);
}

void ssd_summary_backward(const SsdSummaryBackward& a, const Stream& stream) {
  const std::string_view op = "ssd_summary_backward";
  const Extents e = check_inputs(op, a.k, a.v, a.dt, a.a_log, a.state_in);
  const Shape state{e.b, e.h, e.n, e.p};
  expect(a.dstate_out, state, e.statistics, op, "dstate_out");
  expect_optional(a.dlog_decay, {e.b, e.h}, e.statistics, op, "dlog_decay");
  expect(a.dk, a.k.shape(), e.type, op, "dk");
  expect(a.dv, a.v.shape(), e.type, op, "dv");
  expect(a.ddt, a.dt.shape(), e.statistics, op, "ddt");
  expect(a.da_log, {e.h}, e.statistics, op, "da_log");
  expect_optional(a.dstate_in, state, e.statistics, op, "dstate_in");
  run_on(stream, cpu::ssd_summary_backward, cuda::ssd_summary_backward, a);
}

void ssd_scan(const SsdScan& a, const Stream& stream) {
  const std::string_view op = "ssd_scan";
  const Extents e = check_inputs(op, a.k, a.v, a.dt, a.a_log, a.state_in);
  expect(a.q, a.k.shape(), e.type, op, "q");
  expect_optional(a.d_skip, {e.h}, e.statistics, op, "d_skip");
  expect(a.y, a.v.shape(), e.type, op, "y");
  expect_optional(a.state_out, {e.b, e.h, e.n, e.p}, e.statistics, op, "state_out");
  run_on(stream, cpu::ssd_scan, cuda::ssd_scan, a);
}

void ssd_scan_backward(const SsdScanBackward& a, const Stream& stream) {
  const std::string_view op = "ssd_scan_backward";
  const Extents e = check_inputs(op, a.k, a.v, a.dt, a.a_log, a.state_in);
  const Shape state{e.b, e.h, e.n, e.p};
  expect(a.dy, a.v.shape(), e.type, op, "dy");
  expect_optional(a.dstate_out, state, e.statistics, op, "dstate_out");
  expect(a.q, a.k.shape(), e.type, op, "q");
  expect_optional(a.d_skip, {e.h}, e.statistics, op, "d_skip");
  expect(a.dq, a.q.shape(), e.type, op, "dq");
  expect(a.dk, a.k.shape(), e.type, op, "dk");
  expect(a.dv, a.v.shape(), e.type, op, "dv");
  expect(a.ddt, a.dt.shape(), e.statistics, op, "ddt");
  expect(a.da_log, {e.h}, e.statistics, op, "da_log");
  check(static_cast<bool>(a.dd_skip) == static_cast<bool>(a.d_skip), op,
        "dd_skip: expected exactly when d_skip is given");
  expect_optional(a.dd_skip, {e.h}, e.statistics, op, "dd_skip");
  expect_optional(a.dstate_in, state, e.statistics, op, "dstate_in");
  run_on(stream, cpu::ssd_scan_backward, cuda::ssd_scan_backward, a);
}

namespace {

/// Shapes of `states` (s, b, h, n, p) and of log_decay with it; returns the latter.
Shape check_segments(std::string_view op, const ConstView& states, const ConstView& log_decay) {
  expect_rank(states, "(s, b, h, n, p)", op, "states");
  check(states.dim(0) >= 1, op, "states: expected at least one segment, got {}", states.shape());
  const Shape heads{states.dim(0), states.dim(1), states.dim(2)};
  expect(states, states.shape(), states.dtype(), op, "states");
  expect(log_decay, heads, states.dtype(), op, "log_decay");
  return heads;
}

}  // namespace

void ssd_combine(const SsdCombine& a, const Stream& stream) {
  const std::string_view op = "ssd_combine";
  check_segments(op, a.states, a.log_decay);
  expect(a.local, a.states.shape(), a.states.dtype(), op, "local");
  run_on(stream, cpu::ssd_combine, cuda::ssd_combine, a);
}

void ssd_combine_backward(const SsdCombineBackward& a, const Stream& stream) {
  const std::string_view op = "ssd_combine_backward";
  check_segments(op, a.dstates, a.log_decay);
  expect(a.dlocal, a.dstates.shape(), a.dstates.dtype(), op, "dlocal");
  run_on(stream, cpu::ssd_combine_backward, cuda::ssd_combine_backward, a);
}

}  // namespace transmamba
