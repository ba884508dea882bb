// What the tests of SSD ops share: a run of tokens with all that the ops read and write.
#pragma once

#include "kernels/ssd.h"

#include <algorithm>
#include <functional>

#include "testing.h"

namespace transmamba::testing {

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
  void entry_gradient() const {
    ssd_entry_gradient(
        {.dy = dy, .q = q, .dt = dt, .a_log = a_log, .log_decay = log_decay, .dstate_in = dstate_in},
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

inline const std::vector<Sizes> kSizes = {{2, 1, 1, 1, 1},  {1, 5, 3, 2, 4},   {2, 64, 1, 4, 3},
                                          {1, 65, 2, 3, 5}, {1, 200, 1, 6, 2}, {1, 70, 1, 128, 128}};

/// Each output of `run` is near the reference's in every variant, and has the same bits again.
inline void expect_agreement(const Sizes& z, const std::function<void(const Problem&)>& run,
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

}  // namespace transmamba::testing
