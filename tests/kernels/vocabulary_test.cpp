// Both ends of the model: token embedding and cross entropy.
#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "testing.h"

namespace transmamba {
namespace {

using namespace transmamba::testing;  // NOLINT

TEST(Embedding, CopiesRows) {
  for (const Variant& variant : variants()) {
    Arrays arrays(variant);
    const Array weight = arrays.normal({11, 70}), tokens = arrays.tokens({2, 9}, 11),
                y = arrays.poisoned({2, 9, 70});
    embedding({tokens, weight, y}, variant.stream);
    EXPECT_TRUE(near(y, 0, [&](auto& at) {
      return weight({static_cast<std::int64_t>(tokens({at[0], at[1]})), at[2]});
    }));
  }
}

TEST(Embedding, GradientAddsRowsOfRepeatedTokens) {
  for (const Variant& variant : variants()) {
    Arrays arrays(variant);
    const Array dy = arrays.normal({2, 40, 150}), tokens = arrays.tokens({2, 40}, 7),
                dweight = arrays.normal({7, 150});
    Array before({7, 150}, DType::f64);
    before.assign(dweight);
    embedding_backward({dy, tokens, dweight}, variant.stream);
    EXPECT_TRUE(near(dweight, [&](auto& at) {
      double sum = get(before, at);
      for (std::int64_t i = 0; i < 2; ++i)
        for (std::int64_t j = 0; j < 40; ++j)
          if (static_cast<std::int64_t>(tokens({i, j})) == at[0]) sum += dy({i, j, at[1]});
      return sum;
    }));
  }
}

TEST(Embedding, AnUnknownTokenIsNamedWithItsPlace) {
  Arrays arrays({});
  const Array weight = arrays.normal({11, 3}), tokens = arrays.tokens({2, 9}, 11),
              y = arrays.poisoned({2, 9, 3});
  for (double token : {-5.0, 11.0}) {
    set(tokens, {1, 4}, token);
    const std::vector<std::string> words{"tokens", "[0, 11)", std::to_string(static_cast<int>(token)),
                                         "(1, 4)"};
    EXPECT_TRUE(fails_naming([&] { embedding({tokens, weight, y}, {}); }, words));
    EXPECT_TRUE(fails_naming([&] { embedding_backward({y, tokens, weight}, {}); }, words));
  }
}

struct Tokens {
  Variant variant;
  Array logits, targets, loss, lse, dlogits;
  Tokens(const Variant& v, const Shape& shape, double scale) : variant(v) {
    Arrays arrays(v);
    logits = arrays.normal(shape, scale), dlogits = arrays.poisoned(shape);
    targets = arrays.tokens({shape[0], shape[1]}, static_cast<int>(shape[2]));
    loss = arrays.poisoned({shape[0], shape[1]}), lse = arrays.poisoned({shape[0], shape[1]});
  }
  void forward() const {
    const Array maximum = Arrays(variant).poisoned(loss->shape()), partial = poisoned_partial();
    cross_entropy_partial({logits, targets, maximum, partial}, variant.stream);
    cross_entropy_loss({maximum, partial, loss, lse}, variant.stream);
  }
  Array poisoned_partial() const { return Arrays(variant).poisoned({2, logits->dim(0), logits->dim(1)}); }
  void backward(double factor) const {
    cross_entropy_backward({logits, targets, lse, factor, dlogits}, variant.stream);
  }
  std::int64_t target(std::int64_t i, std::int64_t j) const {
    return static_cast<std::int64_t>(targets({i, j}));
  }
  double expected_lse(std::int64_t i, std::int64_t j) const {
    double top = -INFINITY, sum = 0;
    for (std::int64_t k = 0; k < logits->dim(2); ++k) top = std::max(top, logits({i, j, k}));
    for (std::int64_t k = 0; k < logits->dim(2); ++k) sum += std::exp(logits({i, j, k}) - top);
    return top + std::log(sum);
  }
};

TEST(CrossEntropy, AgreesWithTheDefinition) {
  for (const Variant& variant : variants())
    for (double scale : {1.0, 100.0})  // the second overflows without the maximum
      for (const Shape& shape : {Shape{2, 5, 37}, Shape{1, 3, 1000}, Shape{2, 2, 1}}) {
        const Tokens s(variant, shape, scale);
        s.forward();
        const Array lse(s.lse->shape(), DType::f64);
        for_each_index(lse->shape(), [&](auto& at) { set(lse, at, s.expected_lse(at[0], at[1])); });
        EXPECT_TRUE(near(s.lse, [&](auto& at) { return get(lse, at); }));
        EXPECT_TRUE(near(s.loss, [&](auto& at) {
          return get(lse, at) - s.logits({at[0], at[1], s.target(at[0], at[1])});
        }));
        s.backward(0.25);
        EXPECT_TRUE(near(s.dlogits, [&](auto& at) {
          const double p = std::exp(s.logits({at[0], at[1], at[2]}) - lse({at[0], at[1]}));
          return 0.25 * (p - (at[2] == s.target(at[0], at[1])));
        }));
      }
}

TEST(CrossEntropy, TheMaximumMayLieAnywhereInARow) {
  for (const Variant& variant : variants())
    for (int order : {-1, 0, 1}) {  // falling, alternating in size, rising: a larger maximum all the way
      const Tokens s(variant, {1, 2, 3000}, 1);
      for_each_index(s.logits->shape(), [&](auto& at) {
        const double way = static_cast<double>(at[2]) / 10;
        set(s.logits, at, order == 0 && at[2] % 2 ? -way : (order < 0 ? -way : way));
      });
      s.forward();
      EXPECT_TRUE(near(s.lse, [&](auto& at) { return s.expected_lse(at[0], at[1]); }));
    }
}

TEST(CrossEntropy, GradientsAgreeWithFiniteDifferences) {
  const Tokens s({DType::f64, Layout::strided, {}}, {2, 3, 7}, 1);
  s.forward(), s.backward(1.0 / 6);
  EXPECT_TRUE(is_gradient(s.dlogits, s.logits, [&] {
    s.forward();
    double sum = 0;
    for_each_index(s.loss->shape(), [&](auto& at) { sum += get(s.loss, at) / 6; });
    return sum;
  }));
}

TEST(CrossEntropy, GradientMayWriteOverTheLogits) {
  for (const TestStream& stream : streams()) {
    const Variant variant{DType::f64, Layout::contiguous, stream};
    const Tokens a(variant, {2, 5, 333}, 1), b(variant, {2, 5, 333}, 1);
    a.forward(), a.backward(1);
    cross_entropy_backward({b.logits, b.targets, a.lse, 1, b.logits}, stream);
    EXPECT_TRUE(same_bits(a.dlogits, b.logits));
  }
}

TEST(CrossEntropy, MaskedLogitsGetNoGradientAndNanShows) {
  for (const Variant& variant : variants()) {
    const Tokens s(variant, {1, 2, 40}, 1);
    set(s.targets, {0, 0}, 1), set(s.targets, {0, 1}, 1);
    for (std::int64_t k = 20; k < 40; ++k) set(s.logits, {0, 0, k}, -INFINITY);
    set(s.logits, {0, 1, 7}, NAN);
    s.forward(), s.backward(1);
    EXPECT_TRUE(std::isfinite(s.loss({0, 0})));
    for (std::int64_t k = 20; k < 40; ++k) EXPECT_EQ(s.dlogits({0, 0, k}), 0);
    EXPECT_TRUE(std::isnan(s.loss({0, 1})));
    EXPECT_TRUE(std::isnan(s.dlogits({0, 1, 0})));
  }
}

TEST(CrossEntropy, RepeatsHaveTheSameBits) {
  for (const auto& [one, two] : repeats()) {
    const Tokens a(one, {2, 50, 1000}, 1), b(two, {2, 50, 1000}, 1);
    a.forward(), b.forward(), a.backward(1), b.backward(1);
    EXPECT_TRUE(same_bits(a.loss, b.loss) && same_bits(a.lse, b.lse) && same_bits(a.dlogits, b.dlogits));
  }
}

TEST(CrossEntropy, ATargetOutsideTheVocabularyIsNamedWithItsPlace) {
  const Tokens s({}, {2, 5, 33}, 1);
  set(s.targets, {1, 3}, 33);
  EXPECT_TRUE(
      fails_naming([&] { s.forward(); }, {"[cross_entropy_partial]", "targets", "[0, 33)", "33", "(1, 3)"}));
  EXPECT_TRUE(fails_naming([&] { s.backward(1); }, {"[cross_entropy_backward]", "targets", "(1, 3)"}));
}

TEST(Vocabulary, OnAGpuWhatIsOutsideTheVocabularyGivesNanAndNothingElseDoes) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  const Variant gpu{DType::f64, Layout::strided, {Device::cuda}};
  for (int bad : {-5, 33, 2000000000}) {
    const Tokens s(gpu, {2, 5, 33}, 1);
    set(s.targets, {1, 3}, bad);
    const auto is_bad = [](auto& at) { return at[0] == 1 && at[1] == 3; };
    s.forward(), s.backward(1);
    for_each_index(s.loss->shape(), [&](auto& at) { EXPECT_EQ(std::isnan(s.loss(at)), is_bad(at)); });
    for_each_index(s.dlogits->shape(), [&](auto& at) { EXPECT_EQ(std::isnan(s.dlogits(at)), is_bad(at)); });

    Arrays arrays(gpu);
    const Array weight = arrays.normal({33, 3}), y = arrays.poisoned({2, 5, 3}),
                dy = arrays.normal({2, 5, 3});
    embedding({s.targets, weight, y}, gpu.stream);
    for_each_index(y->shape(), [&](auto& at) { EXPECT_EQ(std::isnan(y(at)), is_bad(at)); });
    embedding_backward({dy, s.targets, weight}, gpu.stream);
    const std::int64_t nearest = bad < 0 ? 0 : 32;
    for_each_index(weight->shape(), [&](auto& at) { EXPECT_EQ(std::isnan(weight(at)), at[0] == nearest); });
  }
}

TEST(Embedding, RepeatsHaveTheSameBits) {
  for (const auto& [one, two] : repeats()) {
    const auto gradient = [](const Variant& variant) {
      Arrays arrays(variant);
      const Array dy = arrays.normal({3, 200, 300}), tokens = arrays.tokens({3, 200}, 20),
                  dweight = arrays.normal({20, 300});
      embedding_backward({dy, tokens, dweight}, variant.stream);
      return dweight;
    };
    EXPECT_TRUE(same_bits(gradient(one), gradient(two)));
    EXPECT_TRUE(
        same_bits(gradient({DType::f32, Layout::contiguous, {}}), gradient(two)));  // order is contract
  }
}

TEST(Vocabulary, NoTokensWork) {
  for (const Variant& variant : variants()) {
    const Tokens none(variant, {2, 0, 33}, 1);
    none.forward(), none.backward(1);
    Arrays arrays(variant);
    const Array weight = arrays.poisoned({11, 3}), y = arrays.poisoned({2, 0, 3});
    embedding({none.targets, weight, y}, variant.stream);
    embedding_backward({y, none.targets, weight}, variant.stream);
  }
}

TEST(Vocabulary, BadArgumentsAreNamed) {
  const Tokens s({}, {2, 5, 33}, 1);
  const Array weight({33, 3}, DType::f64), y({2, 5, 4}, DType::f64);
  EXPECT_TRUE(fails_naming(
      [&] {
        embedding({s.targets, weight, y}, {});
      },
      {"[embedding]", "y:", "(2, 5, 3)"}));
  EXPECT_TRUE(fails_naming([&] { embedding({s.loss, weight, y}, {}); }, {"[embedding]", "tokens", "int32"}));
  EXPECT_TRUE(fails_naming(
      [&] {
        cross_entropy_partial({s.logits, s.loss, s.loss, s.lse}, {});
      },
      {"[cross_entropy_partial]", "targets", "int32"}));
  EXPECT_TRUE(fails_naming(
      [&] {
        cross_entropy_partial({s.logits, s.targets, s.loss, s.lse}, {});
      },
      {"[cross_entropy_partial]", "partial", "(2, 2, 5)"}));
  EXPECT_TRUE(fails_naming(
      [&] {
        cross_entropy_partial({s.logits, s.targets, y, s.poisoned_partial()}, {});
      },
      {"[cross_entropy_partial]", "maximum", "(2, 5)"}));
  EXPECT_TRUE(fails_naming(
      [&] {
        cross_entropy_rescale({s.loss, s.lse, y}, {});
      },
      {"[cross_entropy_rescale]", "partial", "(2, 2, 5)"}));
  const Array rows({2, 5, 3}, DType::f64);
  EXPECT_TRUE(fails_naming(
      [&] {
        embedding({s.targets, weight, rows, 3, 35}, {});
      },
      {"[embedding]", "vocab_begin", "[0, 35)", "33 rows from 3"}));
  EXPECT_TRUE(fails_naming(
      [&] {
        cross_entropy_backward({s.logits, s.targets, s.lse, 1, y}, {});
      },
      {"[cross_entropy_backward]", "dlogits"}));
}

}  // namespace
}  // namespace transmamba
