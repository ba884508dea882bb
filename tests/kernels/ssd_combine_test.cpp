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

/// In a buffer where the last segment comes first, and its result too.
std::vector<SegmentPlace> backwards(std::int64_t segments) {
  std::vector<SegmentPlace> places;
  for (std::int64_t k = 0; k < segments; ++k) {
    const auto place = static_cast<std::int16_t>(segments - 1 - k);
    places.push_back({place, place});
  }
  return places;
}

/// What has segments in front at a segment's place, without that dim.
View at_segment(const View& x, std::int64_t k) {
  const std::int64_t place = x.dim(0) - 1 - k;
  return x.slice(0, place, place + 1).merge(0);
}

struct Sequence {
  Variant variant;
  std::vector<std::int64_t> lengths;
  std::int64_t t = 0, segments;
  std::vector<SegmentPlace> places;
  Array q, k, v, dt, a_log, dy, states;
  Packed summaries, gradients;
  Array dends, dq, dk, dv, ddt, da_log;

  Sequence(const Variant& variant_, const std::vector<std::int64_t>& lengths_)
      : Sequence(variant_, lengths_, Arrays(variant_)) {}
  Sequence(const Variant& variant_, const std::vector<std::int64_t>& lengths_, Arrays arrays)
      : variant(variant_),
        lengths(lengths_),
        segments(static_cast<std::int64_t>(lengths_.size())),
        places(backwards(segments)),
        summaries(arrays, segments),
        gradients(arrays, segments) {
    for (std::int64_t length : lengths) t += length;
    const Shape qk{kBatch, t, kHeads, kN}, vy{kBatch, t, kHeads, kP};
    q = arrays.normal(qk), k = arrays.normal(qk), v = arrays.normal(vy), dy = arrays.normal(vy);
    dt = arrays.uniform({kBatch, t, kHeads}, 0.001, 0.1), a_log = arrays.uniform({kHeads}, -1, 1);
    states = arrays.poisoned({segments, kBatch, kHeads, kN, kP}), dends = arrays.poisoned(states->shape());
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
    ssd_combine({summaries.log_decay, summaries.local, places, states}, variant.stream);
  }
  void backward() const {
    for_each_segment([&](std::int64_t s, auto of) {
      if (s == 0) return;  // which nobody reads
      ssd_entry_gradient({.dy = of(dy),
                          .q = of(q),
                          .dt = of(dt),
                          .a_log = a_log,
                          .dstate_in = at_segment(gradients.local, s)},
                         variant.stream);
    });
    ssd_combine_backward({summaries.log_decay, gradients.local, places, dends}, variant.stream);
    for_each_segment([&](std::int64_t s, auto of) {
      ssd_scan_backward({.dy = of(dy),
                         .dstate_out = at_segment(dends, s),
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

/// Inputs and outputs without tokens behind them; every second segment is wanted.
struct Chain {
  std::vector<SegmentPlace> places;
  Array log_decay, local, states, dstates, dlocal;

  Chain(const Variant& variant, std::int64_t segments, std::int64_t n, std::int64_t p)
      : places(backwards(segments)) {
    for (std::int64_t k = 0; k < segments; ++k)
      places[static_cast<std::size_t>(k)].out = static_cast<std::int16_t>(k % 2 == 0 ? k / 2 : -1);
    Arrays arrays(variant);
    const Shape all{segments, 2, 3, n, p}, wanted{(segments + 1) / 2, 2, 3, n, p};
    log_decay = arrays.uniform({segments, 2, 3}, -2, 0), local = arrays.normal(all);
    states = arrays.poisoned(wanted);
    dstates = arrays.normal(all), dlocal = arrays.poisoned(wanted);
  }
  void forward(const Stream& stream) const { ssd_combine({log_decay, local, places, states}, stream); }
  void backward(const Stream& stream) const {
    ssd_combine_backward({log_decay, dstates, places, dlocal}, stream);
  }
};

TEST(SsdCombine, GradientsAgreeWithFiniteDifferences) {
  for (Layout layout : {Layout::contiguous, Layout::strided}) {
    const Chain c({DType::f64, layout, {}}, 5, 3, 2);
    // Of all states, so with all of them wanted.
    std::vector<SegmentPlace> all = backwards(5);
    Arrays arrays({DType::f64, layout, {}});
    const Array states = arrays.poisoned(c.local->shape()), dlocal = arrays.poisoned(c.local->shape());
    const auto loss = [&] {
      ssd_combine({c.log_decay, c.local, all, states}, {});
      return dot(states, c.dstates);
    };
    loss();
    ssd_combine_backward({c.log_decay, c.dstates, all, dlocal}, {});
    EXPECT_TRUE(is_gradient(dlocal, c.local, loss));
    loss();
    c.forward({}), c.backward({});
    for (const auto& [wanted, every] : {std::pair(&c.states, &states), {&c.dlocal, &dlocal}})
      EXPECT_TRUE(near(*wanted, 0, [&, every = every](auto at) {
        at[0] = 4 - 2 * at[0];  // where its segment has its place
        return (*every)(at);
      }));
  }
}

TEST(SsdCombine, AgreesInEveryVariantAndHasTheSameBitsAgain) {
  const Chain reference({}, 3, 40, 30);
  reference.forward({}), reference.backward({});
  for (DType dtype : {DType::f64, DType::f32})
    for (Layout layout : {Layout::contiguous, Layout::strided})
      for (const auto& [first, second] : repeats(dtype, layout)) {
        const Chain one(first, 3, 40, 30), two(second, 3, 40, 30);
        for (const auto& [chain, variant] : {std::pair(&one, &first), {&two, &second}})
          chain->forward(variant->stream), chain->backward(variant->stream);
        for (auto member : {&Chain::states, &Chain::dlocal}) {
          EXPECT_TRUE(
              near(one.*member, tolerance(dtype), [&](auto& at) { return get(reference.*member, at); }));
          EXPECT_TRUE(same_bits(one.*member, two.*member));
        }
      }
}

TEST(SsdCombine, BadArgumentsAreNamed) {
  const Array states({2, 1, 3, 4, 5}, DType::f64), decay({2, 1, 3}, DType::f64), bad({2, 1, 4}, DType::f64);
  const std::vector<SegmentPlace> two = backwards(2), far = {{0, 0}, {2, 1}};
  EXPECT_TRUE(fails_naming(
      [&] {
        ssd_combine({bad, states, two, states}, {});
      },
      {"[ssd_combine] log_decay: expected shape (2, 1, 3)"}));
  EXPECT_TRUE(fails_naming(
      [&] {
        ssd_combine({decay, states, {}, states}, {});
      },
      {"[ssd_combine] segments: expected 1 to 2048, got 0"}));
  EXPECT_TRUE(fails_naming(
      [&] {
        ssd_combine({decay, states, far, states}, {});
      },
      {"[ssd_combine] segments: expected places of 2 and results of 2, got 2 and 1"}));
  EXPECT_TRUE(fails_naming(
      [&] {
        ssd_combine_backward({bad, states, two, states}, {});
      },
      {"[ssd_combine_backward] log_decay"}));
}

}  // namespace
}  // namespace transmamba
