#include "core/shard_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace transmamba {
namespace {

using ::testing::HasSubstr;

std::string error_of(const ShardSpec& spec) {
  try {
    spec.shape();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "expected an Error for " << to_string(spec);
  return "";
}

TEST(ShardSpec, ReplicatedHoldsEverything) {
  const ShardSpec spec{{3, 4}};
  EXPECT_TRUE(spec.replicated());
  EXPECT_EQ(spec.shape(), Shape({3, 4}));
  EXPECT_EQ(spec.offset(), Shape({0, 0}));
  for (int i = 0; i < 12; ++i) EXPECT_EQ(spec.global_index(i), i);
}

TEST(ShardSpec, CutAlongItsDimHoldsOnePart) {
  const ShardSpec spec{{8, 6}, 0, 4, 1};
  EXPECT_EQ(spec.shape(), Shape({2, 6}));
  EXPECT_EQ(spec.offset(), Shape({2, 0}));
  EXPECT_EQ(spec.global_index(0), 12);
  EXPECT_EQ(spec.global_index(11), 23);
  const ShardSpec columns{{8, 6}, 1, 3, 2};
  EXPECT_EQ(columns.shape(), Shape({8, 2}));
  EXPECT_EQ(columns.offset(), Shape({0, 4}));
  EXPECT_EQ(columns.global_index(0), 4);
  EXPECT_EQ(columns.global_index(3), 11);
}

TEST(ShardSpec, PartsCoverEveryElementOnceAtItsCoordinates) {
  const Shape global{4, 6, 2};
  for (auto [dim, parts] : {std::pair{0, 2}, {1, 2}, {2, 2}, {0, 3}, {1, 4}, {1, 5}, {2, 7}}) {
    std::vector<int> times(static_cast<std::size_t>(global.numel()));
    for (int index = 0; index < parts; ++index) {
      const ShardSpec spec{global, dim, parts, index};
      const Shape local = spec.shape(), offset = spec.offset();
      std::int64_t flat = 0;
      for (std::int64_t a = 0; a < local[0]; ++a)
        for (std::int64_t b = 0; b < local[1]; ++b)
          for (std::int64_t c = 0; c < local[2]; ++c, ++flat) {
            const std::int64_t at = ((a + offset[0]) * 6 + b + offset[1]) * 2 + c + offset[2];
            EXPECT_EQ(spec.global_index(flat), at);
            ++times[static_cast<std::size_t>(at)];
          }
    }
    EXPECT_THAT(times, ::testing::Each(1));
  }
}

TEST(ShardSpec, IndexesTensorsPastThirtyTwoBits) {
  const ShardSpec spec{{1 << 20, 1 << 16}, 1, 2, 1};
  EXPECT_EQ(spec.global_index(spec.shape().numel() - 1), (std::int64_t{1} << 36) - 1);
}

TEST(ShardSpec, OnePartOfOneIsReplicated) { EXPECT_TRUE((ShardSpec{{3, 4}, 1, 1, 0}.replicated())); }

TEST(ShardSpec, TheLastPartsMayBeShorterOrEmpty) {
  const auto part = [](int parts, int index) { return ShardSpec{{10, 6}, 0, parts, index}; };
  EXPECT_EQ(part(4, 2).shape(), Shape({3, 6}));
  EXPECT_EQ(part(4, 3).shape(), Shape({1, 6}));
  EXPECT_EQ(part(4, 3).offset(), Shape({9, 0}));
  EXPECT_EQ(part(4, 3).global_index(5), 59);
  EXPECT_EQ(part(7, 4).shape(), Shape({2, 6}));
  for (int empty : {5, 6}) {
    EXPECT_EQ(part(7, empty).shape(), Shape({0, 6}));
    EXPECT_EQ(part(7, empty).offset(), Shape({10, 0}));
    EXPECT_THROW(part(7, empty).global_index(0), Error);
  }
}

TEST(ShardSpec, RejectsDimsPartsAndIndicesThatAreNone) {
  EXPECT_THAT(error_of({{10, 6}, 2, 2, 0}), HasSubstr("expected a dim from -1 (replicated) to 1, got 2"));
  EXPECT_THAT(error_of({{10, 6}, -2, 2, 0}), HasSubstr("got -2"));
  EXPECT_THAT(error_of({{10, 6}, 0, 0, 0}), HasSubstr("at least 1 part, got 0"));
  EXPECT_THAT(error_of({{10, 6}, 0, 2, 2}), HasSubstr("an index from 0 to 1, got 2"));
  EXPECT_THAT(error_of({{10, 6}, -1, 2, -1}), HasSubstr("got -1"));
}

TEST(ShardSpec, RejectsALocalIndexOutsideItsPart) {
  const ShardSpec spec{{8, 6}, 0, 4, 1};
  EXPECT_THROW(spec.global_index(12), Error);
  EXPECT_THROW(spec.global_index(-1), Error);
}

}  // namespace
}  // namespace transmamba
