#include "ssd_problem.h"

namespace transmamba {
namespace {

using namespace transmamba::testing;  // NOLINT

TEST(SsdSummary, IsTheStateTheScanEndsWith) {
  for (const Variant& variant : variants())
    for (const Sizes& z : kSizes) {
      const Problem s(variant, z);
      s.summary();
      const auto [y, state] = s.recurrence();
      EXPECT_TRUE(near(s.state_out, 10 * tolerance(variant.dtype),
                       [&, state = state](auto& at) { return get(state, at); }));
      EXPECT_TRUE(near(s.log_decay, 10 * tolerance(variant.dtype), [&](auto& at) {
        double sum = 0;
        for (std::int64_t t = 0; t < z.t; ++t) sum += s.dt({at[0], t, at[1]});
        return -std::exp(s.a_log({at[1]})) * sum;
      }));
    }
}

TEST(SsdSummary, SummariesOfSegmentsCombineToTheSummaryOfTheWhole) {
  const Problem whole({}, {1, 140, 2, 3, 4});
  whole.summary();
  Problem s({}, whole.z);
  Problem::clear({s.state_in});
  const auto local = [&](std::int64_t begin, std::int64_t end, const Array& state, const Array& log_decay) {
    const auto of = [&](const Array& x) { return x->slice(1, begin, end); };
    ssd_summary({.k = of(s.k),
                 .v = of(s.v),
                 .dt = of(s.dt),
                 .a_log = s.a_log,
                 .state_out = state,
                 .log_decay = log_decay},
                {});
  };
  Arrays arrays({});
  const Array s1 = arrays.poisoned(s.state_in->shape()), s2 = arrays.poisoned(s.state_in->shape()),
              d1 = arrays.poisoned({1, 2}), d2 = arrays.poisoned({1, 2});
  local(0, 30, s1, d1);
  local(30, 140, s2, d2);
  EXPECT_TRUE(near(whole.state_out, [&](auto& at) {
    const std::vector<std::int64_t> head = {at[0], at[1]};
    return std::exp(d2(head)) * (std::exp(d1(head)) * whole.state_in(at) + s1(at)) + s2(at);
  }));
  EXPECT_TRUE(near(whole.log_decay, [&](auto& at) { return d1(at) + d2(at); }));
}

TEST(SsdSummary, GradientsAgreeWithFiniteDifferencesAndAdd) {
  for (const Sizes& z : {Sizes{2, 1, 1, 2, 3}, Sizes{1, 7, 2, 3, 2}, Sizes{1, 67, 1, 2, 2}}) {
    Problem s({DType::f64, Layout::strided, {}}, z);
    Problem::clear({s.dk, s.dv, s.ddt});
    s.summary_backward();
    const auto loss = [&] {
      s.summary();
      return dot(s.state_out, s.dstate_out) + dot(s.log_decay, s.dlog_decay);
    };
    EXPECT_TRUE(is_gradient(s.dk, s.k, loss));
    EXPECT_TRUE(is_gradient(s.dv, s.v, loss));
    EXPECT_TRUE(is_gradient(s.ddt, s.dt, loss));
    EXPECT_TRUE(is_gradient(s.da_log, s.a_log, loss));
    EXPECT_TRUE(is_gradient(s.dstate_in, s.state_in, loss));
    const double once = s.dk({0, 0, 0, 0});
    s.summary_backward();
    EXPECT_NEAR(s.dk({0, 0, 0, 0}), 2 * once, 1e-12);
  }
}

TEST(SsdSummary, GradientsAgreeInEveryVariantAndHaveTheSameBitsAgain) {
  for (const Sizes& z : {Sizes{2, 150, 3, 5, 4}, Sizes{1, 80, 1, 128, 128}, Sizes{1, 65, 1, 33, 70}})
    expect_agreement(z,
                     [](const Problem& s) {
                       Problem::clear({s.dk, s.dv, s.ddt});
                       s.summary(), s.summary_backward();
                     },
                     {&Problem::state_out, &Problem::log_decay, &Problem::dk, &Problem::dv, &Problem::ddt,
                      &Problem::da_log, &Problem::dstate_in});
}

TEST(SsdEntryGradient, IsWhatTheOutputsAskOfTheStateThroughTheTokensBetween) {
  for (const Variant& variant : variants())
    for (const Sizes& z : kSizes) {
      const Problem s(variant, z), scanned(variant, z);
      Problem::clear({s.log_decay, scanned.dstate_out});
      scanned.scan_backward();
      s.entry_gradient();
      const double allowed = 10 * tolerance(variant.dtype);  // sums of up to 200 terms
      EXPECT_TRUE(near(s.dstate_in, allowed, [&](auto& at) { return scanned.dstate_in(at); })) << "t " << z.t;
      for_each_index(s.log_decay->shape(), [&](auto& at) { set(s.log_decay, at, -0.5); });
      s.entry_gradient();
      EXPECT_TRUE(
          near(s.dstate_in, allowed, [&](auto& at) { return std::exp(-0.5) * scanned.dstate_in(at); }))
          << "t " << z.t;
    }
}

TEST(SsdEntryGradient, AgreesInEveryVariantAndHasTheSameBitsAgain) {
  for (const Sizes& z : {Sizes{2, 150, 3, 5, 4}, Sizes{1, 80, 1, 128, 128}, Sizes{1, 65, 1, 33, 70}})
    expect_agreement(z,
                     [](const Problem& s) {
                       Problem::clear({s.log_decay});
                       s.entry_gradient();
                     },
                     {&Problem::dstate_in});
}

}  // namespace
}  // namespace transmamba
