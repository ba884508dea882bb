// The ends of the model over a vocabulary that lies on several ranks: shards composed are the whole.
#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "testing.h"

namespace transmamba {
namespace {

using namespace transmamba::testing;  // NOLINT

constexpr int kVocab = 45;

/// Where each shard begins, and the end.
const std::vector<std::vector<std::int64_t>> kCuts = {
    {0, 45}, {0, 23, 45}, {0, 15, 30, 45}, {0, 9, 10, 10, 44, 45}, {0, 0, 45, 45}};

template <class F>  // f(begin, end)
void for_each_shard(const std::vector<std::int64_t>& cuts, F&& f) {
  for (std::size_t i = 0; i + 1 < cuts.size(); ++i) f(cuts[i], cuts[i + 1]);
}

TEST(VocabularyShards, EmbeddingsSumToThoseOfTheWhole) {
  for (const Variant& variant : variants())
    for (const auto& cuts : kCuts) {
      Arrays arrays(variant);
      const Array weight = arrays.normal({kVocab, 7}), tokens = arrays.tokens({3, 40}, kVocab),
                  dy = arrays.normal({3, 40, 7}), part = arrays.poisoned({3, 40, 7});
      const Array y({3, 40, 7}, DType::f64), dweight = Arrays(variant, 9).normal({kVocab, 7}),
                                             expected = Arrays(variant, 9).normal({kVocab, 7});
      fill_with(y, 0);
      for_each_shard(cuts, [&](std::int64_t begin, std::int64_t end) {
        part.fill_poison();
        embedding({tokens, weight->slice(0, begin, end), part, begin, kVocab}, variant.stream);
        for_each_index(y->shape(), [&](auto& at) { set(y, at, y(at) + part(at)); });
        embedding_backward({dy, tokens, dweight->slice(0, begin, end), begin, kVocab}, variant.stream);
      });
      EXPECT_TRUE(near(y, 0, [&](auto& at) {
        return weight({static_cast<std::int64_t>(tokens({at[0], at[1]})), at[2]});
      }));
      embedding_backward({dy, tokens, expected}, variant.stream);
      EXPECT_TRUE(same_bits(dweight, expected));
    }
}

/// What ranks with these shards compute together; all-reduces are loops here.
struct Composed {
  Array loss, lse, dlogits;

  Composed(const Variant& variant, const Array& logits, const Array& targets,
           const std::vector<std::int64_t>& cuts) {
    Arrays arrays(variant);
    const Shape tokens = targets->shape(), pair{2, tokens[0], tokens[1]};
    const Array maximum = arrays.poisoned(tokens), partial = arrays.poisoned(pair);
    std::vector<Array> owns, parts;  // a shard
    loss = arrays.poisoned(tokens), lse = arrays.poisoned(tokens), dlogits = arrays.poisoned(logits->shape());
    fill_with(maximum, -INFINITY), fill_with(partial, 0);
    for_each_shard(cuts, [&](std::int64_t begin, std::int64_t end) {
      const Array &own = owns.emplace_back(arrays.poisoned(tokens)),
                  &part = parts.emplace_back(arrays.poisoned(pair));
      cross_entropy_partial({logits->slice(2, begin, end), targets, own, part, begin, kVocab},
                            variant.stream);
      for_each_index(tokens, [&](auto& at) { set(maximum, at, std::max(maximum(at), own(at))); });
    });
    for (std::size_t i = 0; i < parts.size(); ++i) {
      cross_entropy_rescale({owns[i], maximum, parts[i]}, variant.stream);
      for_each_index(pair, [&](auto& at) { set(partial, at, partial(at) + parts[i](at)); });
    }
    cross_entropy_loss({maximum, partial, loss, lse}, variant.stream);
    for_each_shard(cuts, [&](std::int64_t begin, std::int64_t end) {
      cross_entropy_backward(
          {logits->slice(2, begin, end), targets, lse, 0.25, dlogits->slice(2, begin, end), begin, kVocab},
          variant.stream);
    });
  }
};

TEST(VocabularyShards, LossAndGradientAreThoseOfTheWhole) {
  for (const Variant& variant : variants())
    for (double scale : {1.0, 100.0}) {  // at 100 most shards hold nothing but zeros
      Arrays arrays(variant);
      const Array logits = arrays.normal({2, 30, kVocab}, scale), targets = arrays.tokens({2, 30}, kVocab);
      const Composed whole(variant, logits, targets, {0, kVocab});
      for (const auto& cuts : kCuts) {
        const Composed s(variant, logits, targets, cuts);
        const double allowed = variant.dtype == DType::f64 ? 1e-13 : 1e-6;
        EXPECT_TRUE(near(s.loss, allowed, [&](auto& at) { return get(whole.loss, at); }));
        EXPECT_TRUE(near(s.lse, allowed, [&](auto& at) { return get(whole.lse, at); }));
        EXPECT_TRUE(near(s.dlogits, allowed, [&](auto& at) { return get(whole.dlogits, at); }));
      }
    }
}

TEST(VocabularyShards, AShardMayBeMaskedAndNanShowsFromAny) {
  for (const Variant& variant : variants())
    for (const auto& cuts : kCuts) {
      Arrays arrays(variant);
      const Array logits = arrays.normal({1, 4, kVocab}), targets = arrays.tokens({1, 4}, kVocab);
      for_each_index(logits->shape(), [&](auto& at) {  // what is masked of a row
        const bool masked = at[1] == 0 ? at[2] < 30 : at[1] == 1 ? at[2] >= 10 : true;
        if (masked) set(logits, at, -INFINITY);
      });
      set(logits, {0, 2, 20}, NAN);
      set(logits, {0, 2, 40}, 1), set(logits, {0, 3, 0}, 1);
      for (std::int64_t j = 0; j < 4; ++j) set(targets, {0, j}, j % 2 ? 0 : 40);
      const Composed whole(variant, logits, targets, {0, kVocab}), s(variant, logits, targets, cuts);
      for (std::int64_t j = 0; j < 4; ++j)
        if (j == 2) {
          EXPECT_TRUE(std::isnan(s.loss({0, j})) && std::isnan(s.lse({0, j})));
        } else {
          EXPECT_TRUE(std::isfinite(s.loss({0, j})));
          EXPECT_NEAR(s.loss({0, j}), whole.loss({0, j}), tolerance(variant.dtype));
          EXPECT_NEAR(s.lse({0, j}), whole.lse({0, j}), tolerance(variant.dtype));
        }
      EXPECT_EQ(s.loss({0, 3}), 0);  // one word is all there is
    }
}

TEST(VocabularyShards, AShardWithNothingHasASumOfZero) {
  for (const Variant& variant : variants())
    for (std::int64_t columns : {0, 1, 40}) {
      Arrays arrays(variant);
      const Array logits = arrays.normal({1, 2, columns}), targets = arrays.tokens({1, 2}, 3);
      const Array own = arrays.poisoned({1, 2}), maximum = arrays.normal({1, 2}),
                  partial = arrays.poisoned({2, 1, 2});
      fill_with(logits, -INFINITY);
      cross_entropy_partial({logits, targets, own, partial, 3, 50}, variant.stream);
      for (std::int64_t j : {0, 1}) EXPECT_EQ(own({0, j}), -INFINITY);
      EXPECT_TRUE(near(partial, 0, [](auto&) { return 0.0; }));
      for (const Array& over_all : {maximum, own}) {
        cross_entropy_rescale({own, over_all, partial}, variant.stream);
        EXPECT_TRUE(near(partial, 0, [](auto&) { return 0.0; }));
      }
    }
}

TEST(VocabularyShards, LossInSinglePrecisionIsGoodToOneInAMillion) {
  for (const TestStream& stream : streams()) {
    const Variant variant{DType::f32, Layout::contiguous, stream};
    Arrays arrays(variant);
    const Array logits = arrays.normal({1, 8, 50000}, 3), targets = arrays.tokens({1, 8}, 50000);
    const Array maximum = arrays.poisoned({1, 8}), partial = arrays.poisoned({2, 1, 8}),
                loss = arrays.poisoned({1, 8});
    cross_entropy_partial({logits, targets, maximum, partial}, stream);
    cross_entropy_loss({maximum, partial, loss, maximum}, stream);  // lse over maximum
    EXPECT_TRUE(near(loss, 1e-6, [&](auto& at) {
      double sum = 0;
      for (std::int64_t k = 0; k < 50000; ++k) sum += std::exp(logits({0, at[1], k}));
      return std::log(sum) - logits({0, at[1], static_cast<std::int64_t>(targets(at))});
    }));
  }
}

TEST(VocabularyShards, WhatIsOutsideTheVocabularyIsNamedOnEveryShard) {
  Arrays arrays({});
  const Array weight = arrays.normal({5, 3}), tokens = arrays.tokens({2, 4}, 20),
              rows = arrays.normal({2, 4, 3}), logits = arrays.normal({2, 4, 5}),
              number = arrays.normal({2, 4}), partial = arrays.normal({2, 2, 4});
  set(tokens, {1, 2}, 20);
  const std::vector<std::string> words{"[0, 20)", "20", "(1, 2)"};
  for (std::int64_t begin : {0, 15}) {
    EXPECT_TRUE(fails_naming([&] { embedding({tokens, weight, rows, begin, 20}, {}); }, words));
    EXPECT_TRUE(fails_naming([&] { embedding_backward({rows, tokens, weight, begin, 20}, {}); }, words));
    EXPECT_TRUE(fails_naming(
        [&] {
          cross_entropy_partial({logits, tokens, number, partial, begin, 20}, {});
        },
        words));
    EXPECT_TRUE(fails_naming(
        [&] {
          cross_entropy_backward({logits, tokens, number, 1, logits, begin, 20}, {});
        },
        words));
  }
}

TEST(VocabularyShards, OnAGpuWhatIsOutsideTheVocabularyGivesNanOnEveryShard) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  const Variant gpu{DType::f64, Layout::strided, {Device::cuda}};
  for (int bad : {-5, 45, 2000000000})
    for (std::int64_t begin : {0, 40}) {
      Arrays arrays(gpu);
      const Array weight = arrays.normal({5, 3}), tokens = arrays.tokens({2, 4}, kVocab),
                  y = arrays.normal({2, 4, 3}), dy = arrays.normal({2, 4, 3}),
                  logits = arrays.normal({2, 4, 5}), lse = arrays.normal({2, 4}),
                  partial = arrays.normal({2, 2, 4});
      set(tokens, {1, 2}, bad);
      const auto is_bad = [](auto& at) { return at[0] == 1 && at[1] == 2; };
      embedding({tokens, weight, y, begin, kVocab}, gpu.stream);
      for_each_index(y->shape(), [&](auto& at) { EXPECT_EQ(std::isnan(y(at)), is_bad(at)); });
      cross_entropy_partial({logits, tokens, lse, partial, begin, kVocab}, gpu.stream);
      EXPECT_TRUE(std::isnan(partial({1, 1, 2})));
      EXPECT_FALSE(std::isnan(partial({1, 1, 1})));
      cross_entropy_backward({logits, tokens, lse, 1, logits, begin, kVocab}, gpu.stream);
      for_each_index(logits->shape(), [&](auto& at) { EXPECT_EQ(std::isnan(logits(at)), is_bad(at)); });
      embedding_backward({dy, tokens, weight, begin, kVocab}, gpu.stream);
      EXPECT_EQ(std::isnan(weight({0, 0})), bad < 0 && begin == 0);
      EXPECT_EQ(std::isnan(weight({4, 0})), bad > 0 && begin == 40);
    }
}

}  // namespace
}  // namespace transmamba
