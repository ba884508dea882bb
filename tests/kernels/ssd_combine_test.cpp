// A sequence cut in segments, each summarised alone: how states cross ranks.
#include <algorithm>

#include "kernels/ssd.h"
#include "testing.h"

namespace transmamba {
namespace {

using namespace transmamba::testing;  // NOLINT

constexpr std::int64_t kBatch = 2, kHeads = 3, kN = 5, kP = 4;
const std::vector<std::vector<std::int64_t>> kLengths = {
    {40}, {0, 1, 5, 100}, {100, 0, 0, 6}, {5, 1}, {70, 70, 0}};

/// Summaries as ranks gather them: a row a segment, decays before states.
struct Packed {
  Array memory;
  View log_decay, local;
  Packed(Arrays& arrays, std::int64_t segments)
      : memory(arrays.poisoned({segments, kBatch * kHeads * (1 + kN * kP)})),
        log_decay(memory->slice(1, 0, kBatch * kHeads).split(1, kHeads)),
        local(memory->slice(1, kBatch * kHeads, memory->dim(1))
                  .split(1, kHeads * kN * kP)
                  .split(2, kN * kP)
                  .split(3, kP)) {}
};

/// Segment k of what has segments in front, without that dim.
View at_segment(const View& x, std::int64_t k) { return x.slice(0, k, k + 1).merge(0); }

struct Sequence {
  Variant variant;
  std::vector<std::int64_t> lengths;
  std::int64_t t = 0, segments;
  Array q, k, v, dt, a_log, dy, states;
  Packed summaries, gradients;
  Array dstates, dq, dk, dv, ddt, da_log;

  Sequence(const Variant& variant_, const std::vector<std::int64_t>& lengths_)
      : Sequence(variant_, lengths_, Arrays(variant_)) {}
  Sequence(const Variant& variant_, const std::vector<std::int64_t>& lengths_, Arrays arrays)
      : variant(variant_),
        lengths(lengths_),
        segments(static_cast<std::int64_t>(lengths_.size())),
        summaries(arrays, segments),
        gradients(arrays, segments) {
    for (std::int64_t length : lengths) t += length;
    const Shape qk{kBatch, t, kHeads, kN}, vy{kBatch, t, kHeads, kP};
    q = arrays.normal(qk), k = arrays.normal(qk), v = arrays.normal(vy), dy = arrays.normal(vy);
    dt = arrays.uniform({kBatch, t, kHeads}, 0.001, 0.1), a_log = arrays.uniform({kHeads}, -1, 1);
    states = arrays.poisoned({segments, kBatch, kHeads, kN, kP}), dstates = arrays.poisoned(states->shape());
    dq = arrays.poisoned(qk), dk = arrays.poisoned(qk), dv = arrays.poisoned(vy);
    ddt = arrays.poisoned(dt->shape()), da_log = arrays.poisoned({kHeads});
    fill_with(da_log, 0);
  }
  /// f(segment, slice of its tokens)
  template <class F>
  void for_each_segment(F&& f) const {
    std::int64_t begin = 0;
    for (std::int64_t s = 0; s < segments; begin += lengths[static_cast<std::size_t>(s++)]) {
      const std::int64_t end = begin + lengths[static_cast<std::size_t>(s)];
      f(s, [begin, end](const View& x) { return x.slice(1, begin, end); });
    }
  }
  void forward() const {
    for_each_segment([&](std::int64_t s, auto of) {
      ssd_summary({.k = of(k),
                   .v = of(v),
                   .dt = of(dt),
                   .a_log = a_log,
                   .state_out = at_segment(summaries.local, s),
                   .log_decay = at_segment(summaries.log_decay, s)},
                  variant.stream);
    });
    ssd_combine({summaries.log_decay, summaries.local, states}, variant.stream);
  }
  void backward() const {
    for_each_segment([&](std::int64_t s, auto of) {
      ssd_scan_backward({.dy = of(dy),
                         .q = of(q),
                         .k = of(k),
                         .v = of(v),
                         .dt = of(dt),
                         .a_log = a_log,
                         .state_in = at_segment(states, s),
                         .dq = of(dq),
                         .dk = of(dk),
                         .dv = of(dv),
                         .ddt = of(ddt),
                         .da_log = da_log,
                         .dstate_in = at_segment(dstates, s)},
                        variant.stream);
    });
    ssd_combine_backward({dstates, summaries.log_decay, gradients.local}, variant.stream);
    for_each_segment([&](std::int64_t s, auto of) {
      ssd_summary_backward({.dstate_out = at_segment(gradients.local, s),
                            .k = of(k),
                            .v = of(v),
                            .dt = of(dt),
                            .a_log = a_log,
                            .state_in = at_segment(states, s),
                            .dk = of(dk),
                            .dv = of(dv),
                            .ddt = of(ddt),
                            .da_log = da_log},
                           variant.stream);
    });
  }
};

TEST(SsdCombine, StatesAreThoseOfAChainOfSummaries) {
  for (const Variant& variant : variants())
    for (const auto& lengths : kLengths) {
      const Sequence s(variant, lengths);
      s.forward();
      const Array state = Arrays(variant).poisoned({kBatch, kHeads, kN, kP});
      fill_with(state, 0);
      s.for_each_segment([&](std::int64_t segment, auto of) {
        const View actual = at_segment(s.states, segment);
        EXPECT_TRUE(near(state, 5 * tolerance(variant.dtype), [&](auto& at) { return get(actual, at); }))
            << "segment " << segment << " of " << lengths.size();
        ssd_summary({.k = of(s.k),
                     .v = of(s.v),
                     .dt = of(s.dt),
                     .a_log = s.a_log,
                     .state_in = state,
                     .state_out = state},
                    variant.stream);
      });
      EXPECT_TRUE(s.states.neighbours_untouched());
    }
}

TEST(SsdCombine, GradientsThroughSegmentsAreThoseOfTheWholeSequence) {
  for (const Variant& variant : variants())
    for (const auto& lengths : kLengths) {
      const Sequence s(variant, lengths), whole(variant, lengths);
      s.forward(), s.backward();
      ssd_scan_backward({.dy = whole.dy,
                         .q = whole.q,
                         .k = whole.k,
                         .v = whole.v,
                         .dt = whole.dt,
                         .a_log = whole.a_log,
                         .dq = whole.dq,
                         .dk = whole.dk,
                         .dv = whole.dv,
                         .ddt = whole.ddt,
                         .da_log = whole.da_log},
                        variant.stream);
      for (auto member : {&Sequence::dq, &Sequence::dk, &Sequence::dv, &Sequence::ddt, &Sequence::da_log}) {
        double size = 1;  // of the largest: da_log sums over all tokens
        for_each_index((whole.*member)->shape(),
                       [&](auto& at) { size = std::max(size, std::abs(get(whole.*member, at))); });
        EXPECT_TRUE(near(s.*member, size * tolerance(variant.dtype),
                         [&](auto& at) { return get(whole.*member, at); }));
      }
    }
}

TEST(SsdCombine, GradientsAgreeWithFiniteDifferencesAlsoInPlace) {
  const Shape shape{4, 2, 2, 3, 2}, heads{4, 2, 2};
  for (Layout layout : {Layout::contiguous, Layout::strided}) {
    Arrays arrays({DType::f64, layout, {}});
    const Array log_decay = arrays.uniform(heads, -2, 0), local = arrays.normal(shape),
                states = arrays.poisoned(shape), dstates = arrays.normal(shape),
                dlocal = arrays.poisoned(shape);
    const auto loss = [&] {
      ssd_combine({log_decay, local, states}, {});
      return dot(states, dstates);
    };
    ssd_combine_backward({dstates, log_decay, dlocal}, {});
    EXPECT_TRUE(is_gradient(dlocal, local, loss));
    ssd_combine_backward({dstates, log_decay, dstates}, {});
    EXPECT_TRUE(near(dstates, 0, [&](auto& at) { return dlocal(at); }));
  }
}

TEST(SsdCombine, AgreesInEveryVariantAndHasTheSameBitsAgain) {
  const Shape shape{3, 2, 3, 40, 30}, heads{3, 2, 3};
  struct Run {
    Array states, dlocal;
    Run(const Variant& variant, const Shape& shape, const Shape& heads) {
      Arrays arrays(variant);
      const Array log_decay = arrays.uniform(heads, -2, 0), local = arrays.normal(shape),
                  dstates = arrays.normal(shape);
      states = arrays.poisoned(shape), dlocal = arrays.poisoned(shape);
      ssd_combine({log_decay, local, states}, variant.stream);
      ssd_combine_backward({dstates, log_decay, dlocal}, variant.stream);
    }
  };
  const Run reference({}, shape, heads);
  for (DType dtype : {DType::f64, DType::f32})
    for (Layout layout : {Layout::contiguous, Layout::strided})
      for (const auto& [first, second] : repeats(dtype, layout)) {
        const Run one(first, shape, heads), two(second, shape, heads);
        for (auto member : {&Run::states, &Run::dlocal}) {
          EXPECT_TRUE(
              near(one.*member, tolerance(dtype), [&](auto& at) { return get(reference.*member, at); }));
          EXPECT_TRUE(same_bits(one.*member, two.*member));
        }
      }
}

TEST(SsdCombine, BadArgumentsAreNamed) {
  const Array states({2, 1, 3, 4, 5}, DType::f64), decay({2, 1, 3}, DType::f64), bad({2, 1, 4}, DType::f64);
  const auto none = states->slice(0, 0, 0);
  EXPECT_TRUE(fails_naming(
      [&] {
        ssd_combine({bad, states, states}, {});
      },
      {"[ssd_combine] log_decay: expected shape (2, 1, 3)"}));
  EXPECT_TRUE(fails_naming(
      [&] {
        ssd_combine({decay->slice(0, 0, 0), none, none}, {});
      },
      {"[ssd_combine] states", "at least one segment"}));
  EXPECT_TRUE(fails_naming(
      [&] {
        ssd_combine_backward({states, bad, states}, {});
      },
      {"[ssd_combine_backward] log_decay"}));
}

}  // namespace
}  // namespace transmamba
