#include "core/parameter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/hdf5_file.h"
#include "tests/core/files.h"

namespace transmamba {
namespace {

using testing::Folder;

struct Rank {
  Allocator memory;
  ParameterStore store;
  Pack embedding, others;

  /// Part `index` of `parts` of a vocabulary of 10 words, and of a pack whose first matrix may be empty here.
  Rank(int parts, int index) {
    embedding = store.add({{"embedding", {{10, 6}, 0, parts, index}, Init::normal(1)}});
    others = store.add({{"a", {{2, 5}, 0, parts, index}, Init::normal(1)},
                        {"b", {{4 * parts, 5}, 0, parts, index}, Init::normal(1)}});
    store.allocate({.stream = {}, .dtype = DType::f64, .memory = &memory});
    store.initialise(7);
  }
};

TEST(ParameterStore, UnevenAndEmptyPartsHoldTheValuesOfTheWhole) {
  const Rank whole(1, 0);
  for (int parts : {3, 4, 7}) {
    std::int64_t row = 0;
    for (int index = 0; index < parts; ++index) {
      const Rank rank(parts, index);
      const View mine = rank.embedding.value();
      for (std::int64_t i = 0; i < mine.dim(0); ++i, ++row)
        for (std::int64_t j = 0; j < 6; ++j)
          EXPECT_EQ(mine.ptr<double>(i)[j], whole.embedding.value().ptr<double>(row)[j]);
    }
    EXPECT_EQ(row, 10);
  }
}

TEST(ParameterStore, APackStacksPartsOfWhichSomeAreEmpty) {
  const Rank rank(7, 6);
  EXPECT_EQ(rank.embedding.value().shape(), Shape({0, 6}));
  EXPECT_EQ(rank.embedding.grad().shape(), Shape({0, 6}));
  EXPECT_EQ(rank.others.value(0).shape(), Shape({0, 5}));
  EXPECT_EQ(rank.others.value().shape(), Shape({4, 5}));
  EXPECT_EQ(rank.others.value().raw(), rank.others.value(1).raw());
  EXPECT_EQ(rank.store.count(), 20);
}

/// Parameters of every kind that a model has.
struct Mixed {
  Allocator memory;
  ParameterStore store;
  Pack matrices;
  Mixed(DType dtype, int parts, std::int64_t bucket_bytes) {
    for (const char* layer : {"0.", "1.", "2."}) {
      const auto spec = [&](const char* name, const Shape& shape, bool decays) {
        return ParameterSpec{std::string(layer) + name, {shape}, Init::normal(1), decays};
      };
      ParameterSpec norm = spec("norm", {7}, false);
      norm.summed_over = GradientSum::tp, norm.primary = false;
      store.add({norm});
      matrices = store.add({spec("q", {6, 7}, true), spec("k", {5, 7}, true)});
      store.add({spec("bias", {11}, false)});
    }
    ParameterSpec tied{"tied", {{9, 7}}, Init::normal(1), true, true, GradientSum::ends};
    store.add({tied});
    store.allocate({.stream = {.threads = 3}, .dtype = dtype, .memory = &memory}, bucket_bytes, parts);
  }
};

TEST(ParameterStore, BucketsHoldParametersThatAreAlikeAndTileTheFlatOrder) {
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16})
    for (const int parts : {1, 2, 3})
      for (const std::int64_t bytes : {1, 400, 1 << 20}) {
        const Mixed mixed(dtype, parts, bytes);
        const ParameterStore& store = mixed.store;
        std::int64_t end = 0;
        for (const Bucket& bucket : store.buckets()) {
          EXPECT_EQ(bucket.begin, end);
          end = bucket.end;
          EXPECT_EQ((bucket.end - bucket.begin) % parts, 0);
          EXPECT_EQ(bucket.grads.dtype(), statistics_of(dtype));
          EXPECT_EQ(bucket.values.dtype(), bucket.weight_decay ? dtype : statistics_of(dtype));
          EXPECT_EQ(bucket.values.numel(), bucket.end - bucket.begin);
          EXPECT_EQ(bucket.grads.raw(), store.grads().slice(0, bucket.begin, bucket.end).view().raw());
        }
        EXPECT_EQ(end, store.grads().numel());
        for (std::size_t i = 0; i < store.parameters().size(); ++i) {
          const Parameter& p = store.parameters()[i];
          const Bucket& bucket = store.buckets()[store.bucket_of(i)];
          EXPECT_EQ(p.weight_decay, bucket.weight_decay) << p.name;
          EXPECT_EQ(p.primary, bucket.primary) << p.name;
          EXPECT_EQ(p.summed_over, bucket.summed_over) << p.name;
          const std::int64_t at = p.offset - bucket.begin;
          EXPECT_TRUE(0 <= at && p.offset + p.value.numel() <= bucket.end) << p.name;
          EXPECT_EQ(p.value.raw(), bucket.values.raw() + at * size_of(bucket.values.dtype())) << p.name;
          EXPECT_EQ(p.grad.raw(), bucket.grads.raw() + at * size_of(bucket.grads.dtype())) << p.name;
        }
        // With buckets of any size: those of a kind one after the other, at most one bucket of few bytes.
        EXPECT_EQ(store.buckets().size(), bytes == 1 ? 10U : bytes == 1 << 20 ? 4U : store.buckets().size());
      }
}

TEST(ParameterStore, GapsStayZeroAndMatricesOfBfloat16AreTheRoundedValues) {
  Mixed narrow(DType::bf16, 2, 400), wide(DType::f32, 2, 400);
  wide.store.initialise(5);
  std::vector<std::vector<float>> unrounded(narrow.store.parameters().size());
  narrow.store.initialise(5, [&](std::size_t i, std::int64_t begin, const Tensor& values) {
    EXPECT_EQ(begin, static_cast<std::int64_t>(unrounded[i].size()));
    unrounded[i].insert(unrounded[i].end(), values.ptr<float>(), values.ptr<float>() + values.numel());
  });
  std::int64_t in_parameters = 0, set = 0;
  for (std::size_t i = 0; i < unrounded.size(); ++i) {
    const Parameter& p = narrow.store.parameters()[i];
    in_parameters += p.value.numel();
    for (std::size_t k = 0; k < unrounded[i].size(); ++k) {
      ASSERT_EQ(unrounded[i][k], wide.store.parameters()[i].value.ptr<float>()[k]);
      const bool matrix = p.value.dtype() == DType::bf16;
      const float kept = matrix ? to_float(p.value.ptr<bfloat16>()[k]) : p.value.ptr<float>()[k];
      ASSERT_EQ(kept, matrix ? to_float(to_bfloat16(unrounded[i][k])) : unrounded[i][k]);
    }
  }
  for (const Bucket& bucket : narrow.store.buckets())
    for (std::int64_t i = 0; i < bucket.values.numel(); ++i)
      set += bucket.values.dtype() == DType::bf16 ? bucket.values.ptr<bfloat16>()[i].bits != 0
                                                  : bucket.values.ptr<float>()[i] != 0;
  EXPECT_EQ(set, in_parameters);
  EXPECT_EQ(narrow.matrices.value().dtype(), DType::bf16);
  EXPECT_EQ(narrow.matrices.grad().dtype(), DType::f32);
  EXPECT_THAT(testing::error_of([&] { narrow.store.values(); }), ::testing::HasSubstr("bfloat16"));
}

TEST(ParameterStore, APackIsOfParametersThatAreAlike) {
  ParameterStore store;
  EXPECT_THAT(testing::error_of([&] {
                store.add({{"a", {{2, 5}}, Init::normal(1), true}, {"b", {{4, 5}}, Init::normal(1), false}});
              }),
              ::testing::HasSubstr("b: expected sums, weight decay and copies like the others"));
}

TEST(ParameterStore, UnevenAndEmptyPartsAreWrittenAndReadAsOneTensor) {
  const Folder folder;
  constexpr int kParts = 7;
  std::vector<Hdf5Piece> pieces;
  const auto extents = [](const Shape& shape) { return Hdf5File::Extents{shape[0], shape[1]}; };
  for (int index = 0; index < kParts; ++index) {
    const Rank rank(kParts, index);
    const std::string name = "shard-" + std::to_string(index) + ".h5";
    Hdf5File file = Hdf5File::create(folder / name);
    file.write("embedding", rank.embedding.value());
    file.close();
    const ShardSpec& shard = rank.store.parameters()[0].shard;
    pieces.push_back({name, "embedding", extents(shard.offset()), extents(shard.shape())});
  }
  Hdf5File index = Hdf5File::create(folder / "index.h5");
  index.write_virtual("embedding", {10, 6}, DType::f64, pieces);
  index.close();

  const Hdf5File file = Hdf5File::open(folder / "index.h5");
  for (int parts : {1, 3, 12})
    for (int i = 0; i < parts; ++i) {
      const Rank rank(parts, i);
      Allocator memory;
      const View mine = rank.embedding.value();
      const Tensor read(memory, mine.shape(), DType::f64);
      file.read("embedding", extents(rank.store.parameters()[0].shard.offset()), read);
      for (std::int64_t k = 0; k < mine.numel(); ++k) EXPECT_EQ(read.ptr<double>()[k], mine.ptr<double>()[k]);
    }
}

}  // namespace
}  // namespace transmamba
