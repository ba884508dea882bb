#include "ssd_problem.h"

namespace transmamba {
namespace {

using namespace transmamba::testing;  // NOLINT

TEST(SsdScan, AgreesWithTheRecurrence) {
  for (const Variant& variant : variants())
    for (const Sizes& z : kSizes) {
      const Problem s(variant, z);
      s.scan();
      const auto [y, state] = s.recurrence();
      const double allowed = 10 * tolerance(variant.dtype);  // sums of up to 200 terms
      EXPECT_TRUE(near(s.y, allowed, [&, y = y](auto& at) { return get(y, at); })) << "t " << z.t;
      EXPECT_TRUE(near(s.state_out, allowed, [&, state = state](auto& at) { return get(state, at); }))
          << "t " << z.t;
    }
}

TEST(SsdScan, AnyCutOfTheSequenceGivesTheSame) {
  const Problem whole({}, {2, 150, 2, 4, 3});
  whole.scan();
  for (std::int64_t cut : {0, 1, 63, 64, 65, 149, 150}) {
    Problem s({}, whole.z);
    const auto part = [&](std::int64_t begin, std::int64_t end, const Array& in, const Array& out) {
      const auto of = [&](const Array& x) { return x->slice(1, begin, end); };
      ssd_scan({.q = of(s.q),
                .k = of(s.k),
                .v = of(s.v),
                .dt = of(s.dt),
                .a_log = s.a_log,
                .d_skip = s.d_skip,
                .state_in = in,
                .y = of(s.y),
                .state_out = out},
               {});
    };
    part(0, cut, s.state_in, s.state_out);
    part(cut, whole.z.t, s.state_out, s.state_out);  // in place
    EXPECT_TRUE(near(s.y, [&](auto& at) { return whole.y(at); })) << "cut " << cut;
    EXPECT_TRUE(near(s.state_out, [&](auto& at) { return whole.state_out(at); })) << "cut " << cut;
  }
}

TEST(SsdScan, GradientsAgreeWithFiniteDifferences) {
  for (const Sizes& z : {Sizes{2, 1, 1, 2, 3}, Sizes{1, 7, 2, 3, 2}, Sizes{1, 67, 1, 2, 2}}) {
    const Problem s({DType::f64, Layout::strided, {}}, z);
    s.scan_backward();
    const auto loss = [&] {
      s.scan();
      return dot(s.y, s.dy) + dot(s.state_out, s.dstate_out);
    };
    EXPECT_TRUE(is_gradient(s.dq, s.q, loss));
    EXPECT_TRUE(is_gradient(s.dk, s.k, loss));
    EXPECT_TRUE(is_gradient(s.dv, s.v, loss));
    EXPECT_TRUE(is_gradient(s.ddt, s.dt, loss));
    EXPECT_TRUE(is_gradient(s.da_log, s.a_log, loss));
    EXPECT_TRUE(is_gradient(s.dd_skip, s.d_skip, loss));
    EXPECT_TRUE(is_gradient(s.dstate_in, s.state_in, loss));
  }
}

TEST(SsdScan, GradientsAgreeInEveryVariantAndHaveTheSameBitsAgain) {
  for (const Sizes& z : {Sizes{2, 150, 3, 5, 4}, Sizes{1, 80, 1, 128, 128}, Sizes{1, 65, 1, 33, 70}})
    expect_agreement(z, [](const Problem& s) { s.scan(), s.scan_backward(); },
                     {&Problem::y, &Problem::state_out, &Problem::dq, &Problem::dk, &Problem::dv,
                      &Problem::ddt, &Problem::da_log, &Problem::dd_skip, &Problem::dstate_in});
}

TEST(Ssd, WhatIsOptionalMayBeAbsentInEveryVariant) {
  const Sizes z{2, 70, 2, 3, 4};
  const auto run = [](const Problem& s) {
    Problem::clear({s.dk, s.dv, s.ddt});
    ssd_summary_backward({.dstate_out = s.dstate_out,
                          .k = s.k,
                          .v = s.v,
                          .dt = s.dt,
                          .a_log = s.a_log,
                          .dk = s.dk,
                          .dv = s.dv,
                          .ddt = s.ddt,
                          .da_log = s.da_log},
                         s.variant.stream);
    ssd_summary({.k = s.k, .v = s.v, .dt = s.dt, .a_log = s.a_log, .state_out = s.state_out},
                s.variant.stream);
    ssd_scan({.q = s.q, .k = s.k, .v = s.v, .dt = s.dt, .a_log = s.a_log, .y = s.y}, s.variant.stream);
  };
  expect_agreement(
      z, run,
      {&Problem::dk, &Problem::dv, &Problem::ddt, &Problem::da_log, &Problem::state_out, &Problem::y});
  const auto scan_backward = [](const Problem& s) {
    ssd_scan_backward({.dy = s.dy,
                       .q = s.q,
                       .k = s.k,
                       .v = s.v,
                       .dt = s.dt,
                       .a_log = s.a_log,
                       .dq = s.dq,
                       .dk = s.dk,
                       .dv = s.dv,
                       .ddt = s.ddt,
                       .da_log = s.da_log},
                      s.variant.stream);
  };
  expect_agreement(z, scan_backward,
                   {&Problem::dq, &Problem::dk, &Problem::dv, &Problem::ddt, &Problem::da_log});
}

TEST(Ssd, StrongDecayOverManyTokensStaysFinite) {
  for (const TestStream& stream : streams()) {
    const Problem s({DType::f32, Layout::contiguous, stream}, {1, 300, 1, 4, 4});
    set(s.a_log, {0}, 8);  // A = -2981: a token's decay is as small as exp(-894)
    s.scan(), s.scan_backward();
    for (const Array& out : {s.y, s.state_out, s.dq, s.dk, s.dv, s.ddt, s.da_log, s.dstate_in})
      for_each_index(out->shape(), [&](auto& at) { EXPECT_TRUE(std::isfinite(out(at))); });
  }
}

TEST(Ssd, NoTokensPassTheStateOn) {
  for (const Variant& variant : variants()) {
    const Problem s(variant, {2, 0, 2, 3, 4});
    s.scan();
    EXPECT_TRUE(near(s.state_out, [&](auto& at) { return s.state_in(at); }));
    s.scan_backward();
    EXPECT_TRUE(near(s.dstate_in, [&](auto& at) { return s.dstate_out(at); }));
    s.summary();
    EXPECT_TRUE(near(s.state_out, [&](auto& at) { return s.state_in(at); }));
    s.summary_backward();
    EXPECT_TRUE(near(s.dstate_in, [&](auto& at) { return s.dstate_out(at); }));
    Problem::clear({s.log_decay});
    s.entry_gradient();
    EXPECT_TRUE(near(s.dstate_in, [](auto&) { return 0.0; }));
  }
}

TEST(Ssd, BadArgumentsAreNamed) {
  const Problem s({}, {1, 4, 2, 3, 4});
  EXPECT_TRUE(fails_naming(
      [&] { ssd_scan({.q = s.v, .k = s.k, .v = s.v, .dt = s.dt, .a_log = s.a_log, .y = s.y}, {}); },
      {"[ssd_scan] q: expected shape (1, 4, 2, 3), got (1, 4, 2, 4)"}));
  EXPECT_TRUE(fails_naming(
      [&] {
        ssd_entry_gradient({.dy = s.dy, .q = s.q, .dt = s.dt, .a_log = s.a_log, .dstate_in = s.dy}, {});
      },
      {"[ssd_entry_gradient] dstate_in: expected shape (1, 2, 3, 4)"}));
  EXPECT_TRUE(fails_naming(
      [&] { ssd_summary({.k = s.k, .v = s.v, .dt = s.dt, .a_log = s.d_skip, .state_out = s.dy}, {}); },
      {"[ssd_summary] state_out"}));
  EXPECT_TRUE(fails_naming(
      [&] {
        ssd_scan_backward({.dy = s.dy,
                           .q = s.q,
                           .k = s.k,
                           .v = s.v,
                           .dt = s.dt,
                           .a_log = s.a_log,
                           .d_skip = s.d_skip,
                           .dq = s.dq,
                           .dk = s.dk,
                           .dv = s.dv,
                           .ddt = s.ddt,
                           .da_log = s.da_log},
                          {});
      },
      {"[ssd_scan_backward] dd_skip"}));
}

}  // namespace
}  // namespace transmamba
