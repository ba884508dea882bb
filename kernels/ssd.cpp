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

void ssd_entry_gradient(const SsdEntryGradient& a, const Stream& stream) {
  const std::string_view op = "ssd_entry_gradient";
  expect_rank(a.q, "(b, t, h, n)", op, "q");
  expect_rank(a.dy, "(b, t, h, p)", op, "dy");
  const std::int64_t b = a.q.dim(0), t = a.q.dim(1), h = a.q.dim(2);
  const DType statistics = statistics_of(a.q.dtype());
  expect(a.q, a.q.shape(), a.q.dtype(), op, "q");
  expect(a.dy, {b, t, h, a.dy.dim(3)}, a.q.dtype(), op, "dy");
  expect(a.dt, {b, t, h}, statistics, op, "dt");
  expect(a.a_log, {h}, statistics, op, "a_log");
  expect_optional(a.log_decay, {b, h}, statistics, op, "log_decay");
  expect(a.dstate_in, {b, h, a.q.dim(3), a.dy.dim(3)}, statistics, op, "dstate_in");
  run_on(stream, cpu::ssd_entry_gradient, cuda::ssd_entry_gradient, a);
}

namespace {

void check_segments(std::string_view op, std::span<const SegmentPlace> segments, const ConstView& log_decay,
                    const ConstView& in, std::string_view in_name, const ConstView& out,
                    std::string_view out_name) {
  expect_rank(in, "(places, b, h, n, p)", op, in_name);
  expect_rank(out, "(wanted, b, h, n, p)", op, out_name);
  const auto count = static_cast<std::int64_t>(segments.size());
  check(count >= 1 && count <= kMaxSegments, op, "segments: expected 1 to {}, got {}", kMaxSegments, count);
  for (const SegmentPlace& segment : segments)
    check(segment.in >= 0 && segment.in < in.dim(0) && segment.out < out.dim(0), op,
          "segments: expected places of {} and results of {}, got {} and {}", in.dim(0), out.dim(0),
          segment.in, segment.out);
  expect(in, in.shape(), in.dtype(), op, in_name);
  expect(out, {out.dim(0), in.dim(1), in.dim(2), in.dim(3), in.dim(4)}, in.dtype(), op, out_name);
  expect(log_decay, {in.dim(0), in.dim(1), in.dim(2)}, in.dtype(), op, "log_decay");
}

}  // namespace

void ssd_combine(const SsdCombine& a, const Stream& stream) {
  check_segments("ssd_combine", a.segments, a.log_decay, a.local, "local", a.states, "states");
  run_on(stream, cpu::ssd_combine, cuda::ssd_combine, a);
}

void ssd_combine_backward(const SsdCombineBackward& a, const Stream& stream) {
  check_segments("ssd_combine_backward", a.segments, a.log_decay, a.dstates, "dstates", a.dlocal, "dlocal");
  run_on(stream, cpu::ssd_combine_backward, cuda::ssd_combine_backward, a);
}

}  // namespace transmamba
