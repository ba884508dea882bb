#include "kernels/ssd.h"

#include <algorithm>
#include <functional>

#include "testing.h"

namespace transmamba {
namespace {

using namespace transmamba::testing;  // NOLINT

struct Sizes {
  std::int64_t b, t, h, n, p;
};

/// All inputs, outputs and gradients of the SSD ops on one run of tokens.
struct Problem {
  Variant variant;
  Sizes z;
  Array q, k, v, dt, a_log, d_skip, state_in, y, state_out, log_decay;
  Array dy, dstate_out, dlog_decay, dq, dk, dv, ddt, da_log, dd_skip, dstate_in;

  Problem(const Variant& variant_, const Sizes& sizes) : variant(variant_), z(sizes) {
    Arrays arrays(variant);
    const Shape qk{z.b, z.t, z.h, z.n}, vy{z.b, z.t, z.h, z.p}, state{z.b, z.h, z.n, z.p};
    q = arrays.normal(qk), k = arrays.normal(qk), v = arrays.normal(vy), dy = arrays.normal(vy);
    dt = arrays.uniform({z.b, z.t, z.h}, 0.001, 0.3), a_log = arrays.uniform({z.h}, -1, 1),
    d_skip = arrays.normal({z.h});
    state_in = arrays.normal(state), dstate_out = arrays.normal(state),
    dlog_decay = arrays.normal({z.b, z.h});
    y = arrays.poisoned(vy), state_out = arrays.poisoned(state), log_decay = arrays.poisoned({z.b, z.h});
    dq = arrays.poisoned(qk), dk = arrays.poisoned(qk), dv = arrays.poisoned(vy),
    ddt = arrays.poisoned(dt->shape());
    dstate_in = arrays.poisoned(state);
    da_log = arrays.poisoned({z.h}), dd_skip = arrays.poisoned({z.h});
    clear({da_log, dd_skip});
  }
  static void clear(const std::vector<Array>& sums) {
    for (const Array& sum : sums) for_each_index(sum->shape(), [&](auto& at) { set(sum, at, 0); });
  }
  void scan() const {
    ssd_scan({.q = q,
              .k = k,
              .v = v,
              .dt = dt,
              .a_log = a_log,
              .d_skip = d_skip,
              .state_in = state_in,
              .y = y,
              .state_out = state_out},
             variant.stream);
  }
  void scan_backward() const {
    ssd_scan_backward({.dy = dy,
                       .dstate_out = dstate_out,
                       .q = q,
                       .k = k,
                       .v = v,
                       .dt = dt,
                       .a_log = a_log,
                       .d_skip = d_skip,
                       .state_in = state_in,
                       .dq = dq,
                       .dk = dk,
                       .dv = dv,
                       .ddt = ddt,
                       .da_log = da_log,
                       .dd_skip = dd_skip,
                       .dstate_in = dstate_in},
                      variant.stream);
  }
  void summary() const {
    ssd_summary({.k = k,
                 .v = v,
                 .dt = dt,
                 .a_log = a_log,
                 .state_in = state_in,
                 .state_out = state_out,
                 .log_decay = log_decay},
                variant.stream);
  }
  void summary_backward() const {
    ssd_summary_backward({.dstate_out = dstate_out,
                          .dlog_decay = dlog_decay,
                          .k = k,
                          .v = v,
                          .dt = dt,
                          .a_log = a_log,
                          .state_in = state_in,
                          .dk = dk,
                          .dv = dv,
                          .ddt = ddt,
                          .da_log = da_log,
                          .dstate_in = dstate_in},
                         variant.stream);
  }
  /// The recurrence, token by token: every y (b, t, h, p), then the last state (b, h, n, p).
  std::pair<Array, Array> recurrence() const {
    Array ys(y->shape(), DType::f64), s(state_in->shape(), DType::f64);
    s.assign(state_in);
    for (std::int64_t b = 0; b < z.b; ++b)
      for (std::int64_t h = 0; h < z.h; ++h)
        for (std::int64_t t = 0; t < z.t; ++t) {
          const double decay = std::exp(-std::exp(a_log({h})) * dt({b, t, h}));
          for (std::int64_t j = 0; j < z.p; ++j) {
            double sum = d_skip({h}) * v({b, t, h, j});
            for (std::int64_t i = 0; i < z.n; ++i) {
              set(s, {b, h, i, j},
                  decay * s({b, h, i, j}) + dt({b, t, h}) * k({b, t, h, i}) * v({b, t, h, j}));
              sum += s({b, h, i, j}) * q({b, t, h, i});
            }
            set(ys, {b, t, h, j}, sum);
          }
        }
    return {ys, s};
  }
};

const std::vector<Sizes> kSizes = {{2, 1, 1, 1, 1},  {1, 5, 3, 2, 4},   {2, 64, 1, 4, 3},
                                   {1, 65, 2, 3, 5}, {1, 200, 1, 6, 2}, {1, 70, 1, 128, 128}};

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

/// Each output of `run` is near the reference's in every variant, and has the same bits again.
void expect_agreement(const Sizes& z, const std::function<void(const Problem&)>& run,
                      const std::vector<Array Problem::*>& outputs) {
  const Problem reference({}, z);
  run(reference);
  for (DType dtype : {DType::f64, DType::f32})
    for (Layout layout : {Layout::contiguous, Layout::strided})
      for (const auto& [first, second] : repeats(dtype, layout)) {
        const Problem one(first, z), two(second, z);
        run(one), run(two);
        // Sums of up to 300 products k^T S v, whose size is this, and larger than their sums.
        const double size = std::sqrt(static_cast<double>(z.n * z.p)), allowed = 2 * size * tolerance(dtype);
        for (auto member : outputs) {
          EXPECT_TRUE(near(one.*member, allowed, [&](auto& at) { return get(reference.*member, at); }));
          EXPECT_TRUE(same_bits(one.*member, two.*member));
        }
      }
}

TEST(SsdScan, GradientsAgreeInEveryVariantAndHaveTheSameBitsAgain) {
  for (const Sizes& z : {Sizes{2, 150, 3, 5, 4}, Sizes{1, 80, 1, 128, 128}, Sizes{1, 65, 1, 33, 70}})
    expect_agreement(z, [](const Problem& s) { s.scan(), s.scan_backward(); },
                     {&Problem::y, &Problem::state_out, &Problem::dq, &Problem::dk, &Problem::dv,
                      &Problem::ddt, &Problem::da_log, &Problem::dd_skip, &Problem::dstate_in});
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
  }
}

TEST(Ssd, BadArgumentsAreNamed) {
  const Problem s({}, {1, 4, 2, 3, 4});
  EXPECT_TRUE(fails_naming(
      [&] { ssd_scan({.q = s.v, .k = s.k, .v = s.v, .dt = s.dt, .a_log = s.a_log, .y = s.y}, {}); },
      {"[ssd_scan] q: expected shape (1, 4, 2, 3), got (1, 4, 2, 4)"}));
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
