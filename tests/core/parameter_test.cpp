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
