#include "kernels/attention.h"

#include "kernels/elementwise.h"
#include "key_parts.h"
#include "testing.h"

namespace transmamba {
namespace {

using namespace transmamba::testing;  // NOLINT

struct Sizes {
  std::int64_t b, tq, tk, h, n, p, offset;
};

struct Problem {
  Variant variant;
  Sizes z;
  Array q, k, v, o, lse, dout, dq, dk, dv;

  Problem(const Variant& variant_, const Sizes& sizes) : variant(variant_), z(sizes) {
    Arrays arrays(variant);
    q = arrays.normal({z.b, z.tq, z.h, z.n}), k = arrays.normal({z.b, z.tk, z.h, z.n});
    v = arrays.normal({z.b, z.tk, z.h, z.p}), dout = arrays.normal({z.b, z.tq, z.h, z.p});
    o = arrays.poisoned(dout->shape()), lse = arrays.poisoned({z.b, z.h, z.tq});
    dq = arrays.poisoned(q->shape()), dk = arrays.poisoned(k->shape()), dv = arrays.poisoned(v->shape());
  }
  void forward() const {
    attention({.q = q, .k = k, .v = v, .o = o, .lse = lse, .offset = z.offset}, variant.stream);
  }
  void backward() const {
    attention_backward({.dout = dout,
                        .q = q,
                        .k = k,
                        .v = v,
                        .o = o,
                        .lse = lse,
                        .dq = dq,
                        .dk = dk,
                        .dv = dv,
                        .offset = z.offset},
                       variant.stream);
  }
  void forward_over(const Keys& keys, bool continues) const {
    attention({.q = q,
               .k = k->slice(1, keys.first, keys.second),
               .v = v->slice(1, keys.first, keys.second),
               .o = o,
               .lse = lse,
               .offset = offset_to(keys, z.offset),
               .continues = continues},
              variant.stream);
  }
  void backward_over(const Keys& keys, bool accumulate_dq) const {
    const auto of = [&](const View& x) { return x.slice(1, keys.first, keys.second); };
    attention_backward({.dout = dout,
                        .q = q,
                        .k = of(k),
                        .v = of(v),
                        .o = o,
                        .lse = lse,
                        .dq = dq,
                        .dk = of(dk),
                        .dv = of(dv),
                        .offset = offset_to(keys, z.offset),
                        .accumulate_dq = accumulate_dq},
                       variant.stream);
  }
  double score(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    double sum = 0;
    for (std::int64_t x = 0; x < z.n; ++x) sum += q({b, i, h, x}) * k({b, j, h, x});
    return sum / std::sqrt(static_cast<double>(z.n));
  }
  double sum_of_exp(std::int64_t b, std::int64_t h, std::int64_t i) const {
    double sum = 0;
    for (std::int64_t j = 0; j <= std::min(i + z.offset, z.tk - 1); ++j) sum += std::exp(score(b, h, i, j));
    return sum;
  }
  double expected(std::vector<std::int64_t>& at) const {
    const std::int64_t b = at[0], i = at[1], h = at[2];
    double sum = 0;
    for (std::int64_t j = 0; j <= std::min(i + z.offset, z.tk - 1); ++j)
      sum += std::exp(score(b, h, i, j)) * v({b, j, h, at[3]});
    return sum / sum_of_exp(b, h, i);
  }
};

TEST(Attention, AgreesWithTheDefinition) {
  for (const Variant& variant : variants())
    for (const Sizes& z :
         {Sizes{2, 1, 1, 1, 4, 4, 0}, Sizes{1, 7, 7, 3, 6, 5, 0}, Sizes{2, 65, 65, 2, 8, 4, 0},
          Sizes{1, 3, 131, 2, 4, 6, 128}, Sizes{1, 1, 200, 1, 4, 4, 150}, Sizes{1, 70, 140, 1, 4, 3, 33},
          Sizes{1, 9, 9, 1, 128, 128, 0}}) {
      const Problem s(variant, z);
      s.forward();
      EXPECT_TRUE(near(s.o, [&](auto& at) { return s.expected(at); })) << "tq " << z.tq << " tk " << z.tk;
      EXPECT_TRUE(near(s.lse, [&](auto& at) { return std::log(s.sum_of_exp(at[0], at[1], at[2])); }));
    }
}

TEST(Attention, GradientsAgreeWithFiniteDifferences) {
  for (const Sizes& z : {Sizes{2, 1, 1, 1, 2, 3, 0}, Sizes{1, 9, 9, 2, 4, 3, 0}, Sizes{1, 5, 8, 1, 2, 3, 2},
                         Sizes{1, 66, 66, 1, 2, 2, 0}}) {
    const Problem s({DType::f64, Layout::strided, {}}, z);
    s.forward();
    s.backward();
    const auto loss = [&] {
      s.forward();
      return dot(s.o, s.dout);
    };
    EXPECT_TRUE(is_gradient(s.dq, s.q, loss));
    EXPECT_TRUE(is_gradient(s.dk, s.k, loss));
    EXPECT_TRUE(is_gradient(s.dv, s.v, loss));
  }
}

TEST(Attention, GradientsAgreeInEveryVariantAndHaveTheSameBitsAgain) {
  for (const Sizes& z : {Sizes{2, 150, 200, 2, 8, 6, 40},  // several blocks; the last ten keys are never seen
                         Sizes{1, 40, 40, 1, 128, 128, 0}, Sizes{1, 33, 70, 2, 40, 72, 37}}) {
    const Problem reference({}, z);
    reference.forward(), reference.backward();
    if (z.tk == 200) {
      EXPECT_EQ(reference.dk({0, 195, 0, 0}), 0);
    }
    for (DType dtype : {DType::f64, DType::f32})
      for (Layout layout : {Layout::contiguous, Layout::strided})
        for (const auto& [first, second] : repeats(dtype, layout)) {
          const Problem one(first, z), two(second, z);
          one.forward(), one.backward(), two.forward(), two.backward();
          for (auto member : {&Problem::o, &Problem::lse, &Problem::dq, &Problem::dk, &Problem::dv}) {
            EXPECT_TRUE(near(one.*member, [&](auto& at) { return get(reference.*member, at); }));
            EXPECT_TRUE(same_bits(one.*member, two.*member));
          }
        }
  }
}

TEST(Attention, QueriesInSegmentsAddUpToTheGradientsOfTheirKeys) {
  for (const Variant& variant : variants())
    for (const Sizes& z : {Sizes{2, 150, 200, 2, 8, 6, 40}, Sizes{1, 9, 9, 2, 4, 3, 0}}) {
      const Problem whole(variant, z), s(variant, z);
      whole.forward(), whole.backward();
      s.forward();
      bool first = true;  // the second segment before the first: order is free
      for (const auto& [begin, end] :
           {std::pair<std::int64_t, std::int64_t>{z.tq / 3, z.tq}, {0, z.tq / 3}, {z.tq / 3, z.tq / 3}}) {
        const auto of = [&, begin = begin, end = end](const View& x, int dim) {
          return x.slice(dim, begin, end);
        };
        // Keys past the segment's last query may be there or not.
        const std::int64_t tk = first ? z.tk : std::min(z.tk, end + z.offset);
        const auto keys = [&](const View& x) { return x.slice(1, 0, tk); };
        attention_backward({.dout = of(s.dout, 1),
                            .q = of(s.q, 1),
                            .k = keys(s.k),
                            .v = keys(s.v),
                            .o = of(s.o, 1),
                            .lse = of(s.lse, 2),
                            .dq = of(s.dq, 1),
                            .dk = keys(s.dk),
                            .dv = keys(s.dv),
                            .offset = z.offset + begin,
                            .accumulate = !first},
                           variant.stream);
        first = false;
      }
      for (auto member : {&Problem::dq, &Problem::dk, &Problem::dv})
        EXPECT_TRUE(near(s.*member, [&](auto& at) { return get(whole.*member, at); }));
    }
}

TEST(Attention, AccumulatingLeavesKeysThatNoQuerySeesAlone) {
  for (const Variant& variant : variants()) {
    const Problem s(variant, {1, 3, 200, 1, 4, 4, 60});
    s.forward();
    for (const Array& sum : {s.dk, s.dv}) for_each_index(sum->shape(), [&](auto& at) { set(sum, at, 7); });
    attention_backward({.dout = s.dout,
                        .q = s.q,
                        .k = s.k,
                        .v = s.v,
                        .o = s.o,
                        .lse = s.lse,
                        .dq = s.dq,
                        .dk = s.dk,
                        .dv = s.dv,
                        .offset = 60,
                        .accumulate = true},
                       variant.stream);
    for (std::int64_t j = 0; j < 200; ++j) EXPECT_EQ(s.dv({0, j, 0, 0}) == 7, j > 62) << "key " << j;
    for (std::int64_t j = 63; j < 200; ++j) EXPECT_EQ(s.dk({0, j, 0, 0}), 7);
  }
}

TEST(Attention, LargeScoresDoNotOverflow) {
  for (const TestStream& stream : streams()) {
    const Problem s({DType::f32, Layout::contiguous, stream}, {1, 80, 80, 1, 4, 4, 0});
    for_each_index(s.q->shape(), [&](auto& at) { set(s.q, at, 300 * s.q(at)); });
    s.forward(), s.backward();
    for (const Array& out : {s.o, s.dq, s.dk, s.dv})
      for_each_index(out->shape(), [&](auto& at) { EXPECT_TRUE(std::isfinite(out(at))); });
  }
}

struct Parts {
  Sizes z;
  std::vector<std::int64_t> cuts;
};
const Parts kParts[] = {
    {{2, 70, 210, 2, 8, 6, 140}, {0, 140, 210}},  // earlier keys, which all queries see, and their own
    {{2, 70, 210, 2, 8, 6, 140}, {0, 9, 140, 210}},
    {{1, 9, 40, 2, 4, 3, 20}, {0, 20, 40}},  // the last keys are seen by none
    {{2, 5, 60, 1, 4, 3, 70}, {0, 33, 60}},  // all keys are seen by all
    {{2, 1, 3, 2, 4, 5, 2}, {0, 1, 2, 3}},   // one query, and one key a call
};

TEST(Attention, KeysInPartsInAnyOrderGiveWhatAllGiveAtOnce) {
  for (const Variant& variant : variants())
    for (const auto& [z, cuts] : kParts) {
      const Problem whole(variant, z);
      whole.forward(), whole.backward();
      for (const std::vector<Keys>& parts : orders_of_parts(cuts)) {
        const Problem s(variant, z);
        for (const Keys& keys : parts) s.forward_over(keys, /*continues=*/keys != parts.front());
        for (const Keys& keys : parts) s.backward_over(keys, /*accumulate_dq=*/keys != parts.front());
        for (auto member : {&Problem::o, &Problem::lse, &Problem::dq, &Problem::dk, &Problem::dv})
          EXPECT_TRUE(near(s.*member, [&](auto& at) { return get(whole.*member, at); }))
              << "tq " << z.tq << ", " << parts.size() << " parts, first from key " << parts.front().first;
      }
    }
}

TEST(Attention, SegmentsThatAttendToTheirOwnKeysFirstGiveWhatAllGiveAtOnce) {
  for (const Variant& variant : variants()) {
    const Sizes z{2, 150, 150, 2, 8, 6, 0};
    const Problem whole(variant, z), s(variant, z), earlier(variant, z);
    whole.forward(), whole.backward();
    for (const Array* sum : {&earlier.dk, &earlier.dv}) fill({.value = 0, .y = *sum}, variant.stream);
    attend_by_segments({s.q, s.k, s.v, s.o, s.lse}, {s.dout, s.q, s.k, s.v, s.o, s.lse, s.dq, s.dk, s.dv},
                       earlier.dk, earlier.dv, {0, 1, 70, 71, 150}, variant.stream);
    add({.x = earlier.dk, .y = s.dk}, variant.stream), add({.x = earlier.dv, .y = s.dv}, variant.stream);
    for (auto member : {&Problem::o, &Problem::lse, &Problem::dq, &Problem::dk, &Problem::dv})
      EXPECT_TRUE(near(s.*member, [&](auto& at) { return get(whole.*member, at); }));
  }
}

TEST(Attention, PartsOfLargeScoresDoNotOverflow) {
  for (const Variant& variant : variants())
    for (const auto& [z, cuts] : {kParts[0], kParts[1]}) {
      const bool wide = variant.dtype == DType::f64;
      const auto enlarge = [&](const Problem& s) {
        for_each_index(s.q->shape(), [&](auto& at) { set(s.q, at, (wide ? 300 : 30) * s.q(at)); });
      };
      const Problem whole(variant, z);
      enlarge(whole), whole.forward();
      double largest = 0;
      for_each_index(whole.lse->shape(), [&](auto& at) { largest = std::max(largest, whole.lse(at)); });
      EXPECT_GT(largest, std::log(wide ? std::numeric_limits<double>::max()
                                       : static_cast<double>(std::numeric_limits<float>::max())));
      for (const std::vector<Keys>& parts : orders_of_parts(cuts)) {
        const Problem s(variant, z);
        enlarge(s);
        for (const Keys& keys : parts) s.forward_over(keys, /*continues=*/keys != parts.front());
        EXPECT_TRUE(near(s.o, [&](auto& at) { return whole.o(at); }));
        EXPECT_TRUE(near(s.lse, [&](auto& at) { return whole.lse(at); }));
      }
    }
}

TEST(Attention, NoQueriesIsNoWork) {
  for (const Variant& variant : variants())
    for (std::int64_t tk : {0, 5}) {
      const Problem s(variant, {2, 0, tk, 2, 4, 4, 0});
      s.forward(), s.backward();
      EXPECT_TRUE(near(s.dk, 0, [](auto&) { return 0; }));
      EXPECT_TRUE(near(s.dv, 0, [](auto&) { return 0; }));
    }
}

TEST(Attention, OnAGpuWidthsThatDoNotFitAreNamedAndNothingElseFails) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  const Variant gpu{DType::f64, Layout::contiguous, {Device::cuda}};
  const Problem wide(gpu, {1, 2, 2, 1, 4096, 4, 0}), good(gpu, {1, 2, 2, 1, 4, 4, 0});
  EXPECT_TRUE(fails_naming([&] { wide.forward(); }, {"[attention]", "shared memory"}));
  EXPECT_TRUE(fails_naming([&] { wide.backward(); }, {"[attention_backward]", "shared memory"}));
  good.forward();
  EXPECT_TRUE(near(good.o, [&](auto& at) { return good.expected(at); }));
}

TEST(Attention, BadArgumentsAreNamed) {
  const Problem s({}, {1, 4, 4, 2, 4, 4, 0});
  EXPECT_TRUE(fails_naming(
      [&] { attention({.q = s.q, .k = s.dout->slice(1, 0, 0), .v = s.v, .o = s.o, .lse = s.lse}, {}); },
      {"[attention]", "v: expected shape"}));
  EXPECT_TRUE(fails_naming(
      [&] { attention({.q = s.q, .k = s.k, .v = s.v, .o = s.o, .lse = s.lse, .offset = -1}, {}); },
      {"[attention]", "offset"}));
  EXPECT_TRUE(fails_naming([&] { attention({.q = s.q, .k = s.k, .v = s.v, .o = s.lse, .lse = s.lse}, {}); },
                           {"[attention] o: expected shape (1, 4, 2, 4)"}));
}

}  // namespace
}  // namespace transmamba
