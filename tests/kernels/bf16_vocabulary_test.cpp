// Both ends of the model in bfloat16: token embedding and cross entropy.
#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "twins.h"

namespace transmamba {
namespace {

using namespace transmamba::testing;  // NOLINT

TEST(EmbeddingInBfloat16, CopiesRows) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  for (Layout layout : layouts())
    for (std::int64_t d : {70, 64, 3000}) {
      Twins twins(layout);
      const Twin weight = twins.normal({11, d}), y = twins.poisoned({2, 9, d});
      const Array tokens = twins.tokens({2, 9}, 13);
      embedding({tokens, weight.gpu, y.gpu, 1, 13}, Twins::on_gpu());  // words 1 to 11 of 13
      embedding({tokens, weight.cpu, y.cpu, 1, 13}, {});
      EXPECT_TRUE(agree(y));
      EXPECT_TRUE(near(y.gpu, 0, [&](auto& at) { return get(y.cpu, at); }));
    }
}

TEST(EmbeddingInBfloat16, GradientAddsRowsOfRepeatedTokens) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  for (Layout layout : layouts())
    for (const Shape& shape : {Shape{2, 40, 150}, Shape{3, 311, 136}, Shape{1, 1, 8}, Shape{1, 130, 1}})
      for (int words : {1, 7, 300}) {
        Twins twins(layout);
        const std::int64_t rows = std::max(1, words - 3), begin = words > 2 ? 2 : 0, d = shape[2];
        const Twin dy = twins.normal(shape), dweight = twins.normal_s({rows, d});
        const Array tokens = twins.tokens({shape[0], shape[1]}, words);
        embedding_backward({dy.gpu, tokens, dweight.gpu, begin, words}, Twins::on_gpu());
        embedding_backward({dy.cpu, tokens, dweight.cpu, begin, words}, {});
        EXPECT_TRUE(agree(dweight)) << to_string(shape) << " words " << words;
      }
}

TEST(EmbeddingInBfloat16, GradientHasTheOrderOfTokens) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  const auto gradient = [](DType dtype, Device device) {  // bfloat16's numbers in both
    Arrays values({DType::bf16, Layout::contiguous, {}});
    const Array source = values.normal({2, 300, 40}), tokens = values.tokens({2, 300}, 5);
    Arrays arrays({dtype, Layout::contiguous, {device}});
    const Array dy = arrays.dense({2, 300, 40}), dweight = arrays.dense({5, 40}, DType::f32);
    const Array words = arrays.dense({2, 300}, DType::i32);
    dy.assign(source), words.assign(tokens), fill_with(dweight, 1);
    embedding_backward({dy, words, dweight}, TestStream{device});
    return dweight;
  };
  EXPECT_TRUE(same_bits(gradient(DType::bf16, Device::cuda), gradient(DType::f32, Device::cpu)));
}

TEST(EmbeddingInBfloat16, WhatIsOutsideTheVocabularyGivesNan) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  Twins twins(Layout::contiguous);
  const Twin weight = twins.normal({33, 16}), y = twins.poisoned({2, 5, 16}), dy = twins.normal({2, 5, 16}),
             dweight = twins.normal_s({33, 16});
  const Array tokens = twins.tokens({2, 5}, 33);
  set(tokens, {1, 3}, 33);
  embedding({tokens, weight.gpu, y.gpu}, Twins::on_gpu());
  embedding_backward({dy.gpu, tokens, dweight.gpu}, Twins::on_gpu());
  for_each_index(y.gpu->shape(),
                 [&](auto& at) { EXPECT_EQ(std::isnan(y.gpu(at)), at[0] == 1 && at[1] == 3); });
  for_each_index(dweight.gpu->shape(),
                 [&](auto& at) { EXPECT_EQ(std::isnan(dweight.gpu(at)), at[0] == 32); });
}

struct Loss {
  Twin logits, maximum, partial, loss, lse, dlogits;
  Array targets;
  std::int64_t begin, size;

  Loss(Layout layout, const Shape& shape, double scale, std::int64_t first = 0, std::int64_t words = 0)
      : begin(first), size(words) {
    Twins twins(layout);
    const Shape tokens{shape[0], shape[1]};
    logits = twins.normal(shape, scale), dlogits = twins.poisoned(shape);
    maximum = twins.poisoned_s(tokens), loss = twins.poisoned_s(tokens), lse = twins.poisoned_s(tokens);
    partial = twins.poisoned_s({2, shape[0], shape[1]});
    targets = twins.tokens(tokens, static_cast<int>(words ? words : shape[2]));
  }
  void run(Array Twin::*on, const TestStream& stream) const {
    cross_entropy_partial({logits.*on, targets, maximum.*on, partial.*on, begin, size}, stream);
    cross_entropy_loss({maximum.*on, partial.*on, loss.*on, lse.*on}, stream);
    cross_entropy_backward({logits.*on, targets, lse.*on, 0.25, dlogits.*on, begin, size}, stream);
  }
};

TEST(CrossEntropyInBfloat16, AgreesWithTheCpu) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  for (Layout layout : layouts())
    for (double scale : {1.0, 100.0})
      for (const Shape& shape :
           {Shape{2, 5, 37}, Shape{1, 3, 1000}, Shape{2, 2, 1}, Shape{1, 2, 9000}, Shape{1, 2, 32768}}) {
        const Loss s(layout, shape, scale);
        s.run(&Twin::gpu, Twins::on_gpu()), s.run(&Twin::cpu, {});
        EXPECT_TRUE(near(s.maximum.gpu, 0, [&](auto& at) { return get(s.maximum.cpu, at); }));
        EXPECT_TRUE(agree(s.partial)) << to_string(shape);
        EXPECT_TRUE(agree(s.loss)) << to_string(shape);
        EXPECT_TRUE(agree(s.lse)) << to_string(shape);
        EXPECT_TRUE(agree(s.dlogits)) << to_string(shape);
      }
}

TEST(CrossEntropyInBfloat16, WorksOnAShard) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  const Loss s(Layout::contiguous, {2, 30, 80}, 1, 20, 120);
  s.run(&Twin::gpu, Twins::on_gpu()), s.run(&Twin::cpu, {});
  EXPECT_TRUE(agree(s.partial));
  EXPECT_TRUE(agree(s.dlogits));
  const Loss none(Layout::contiguous, {2, 3, 0}, 1, 20, 120);
  none.run(&Twin::gpu, Twins::on_gpu());
  EXPECT_EQ(none.maximum.gpu({1, 2}), -INFINITY);
}

TEST(CrossEntropyInBfloat16, GradientMayWriteOverTheLogitsAndRepeats) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  for (std::int64_t words : {333, 4096}) {
    const Loss a(Layout::contiguous, {2, 5, words}, 1), b(Layout::contiguous, {2, 5, words}, 1);
    a.run(&Twin::gpu, Twins::on_gpu()), b.run(&Twin::gpu, Twins::on_gpu());
    EXPECT_TRUE(same_bits(a.lse.gpu, b.lse.gpu) && same_bits(a.loss.gpu, b.loss.gpu));
    cross_entropy_backward({b.logits.gpu, b.targets, a.lse.gpu, 0.25, b.logits.gpu}, Twins::on_gpu());
    EXPECT_TRUE(same_bits(a.dlogits.gpu, b.logits.gpu));
  }
}

TEST(CrossEntropyInBfloat16, MaskedLogitsGetNoGradientAndNanShows) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  const Loss s(Layout::contiguous, {1, 3, 40}, 1);
  for (std::int64_t j : {0, 1, 2}) set(s.targets, {0, j}, j == 2 ? 40 : 1);
  for (std::int64_t k = 20; k < 40; ++k) set(s.logits.gpu, {0, 0, k}, -INFINITY);
  set(s.logits.gpu, {0, 1, 7}, NAN);
  s.run(&Twin::gpu, Twins::on_gpu());
  EXPECT_TRUE(std::isfinite(s.loss.gpu({0, 0})));
  for (std::int64_t k = 20; k < 40; ++k) EXPECT_EQ(s.dlogits.gpu({0, 0, k}), 0);
  for (std::int64_t j : {1, 2}) {  // a NaN, and a target outside the vocabulary
    EXPECT_TRUE(std::isnan(s.loss.gpu({0, j})));
    EXPECT_TRUE(std::isnan(s.dlogits.gpu({0, j, 0})));
  }
}

}  // namespace
}  // namespace transmamba
