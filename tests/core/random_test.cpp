#include "core/random.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

namespace transmamba {
namespace {

using Counter = std::array<std::uint32_t, 4>;

TEST(Philox, GivesThePublishedKnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (Counter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (Counter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Counter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Stream, IsFnv1aOfTheName) {
  static_assert(stream_of("") == 0xcbf29ce484222325);
  static_assert(stream_of("a") == 0xaf63dc4c8601ec8c);
  static_assert(stream_of("foobar") == 0x85944171f73967e8);
}

TEST(Uniform, IsThePhiloxDrawOfSeedStreamAndIndex) {
  const std::uint64_t bits = (std::uint64_t{0x6627e8d5} << 32 | 0xe169c58d) >> 11;
  EXPECT_EQ(uniform(0, 0, 0), static_cast<double>(bits) / 9007199254740992.0);
  const auto words = philox4x32({4, 3, 6, 5}, {2, 1});
  EXPECT_EQ(uniform(0x100000002, 0x500000006, 0x300000004),
            static_cast<double>((std::uint64_t{words[0]} << 32 | words[1]) >> 11) * 0x1p-53);
}

TEST(Uniform, DiffersBySeedStreamAndIndexInEveryHalf) {
  std::set<double> seen{uniform(1, 2, 3)};
  const std::uint64_t high = std::uint64_t{1} << 32;
  for (const double x : {uniform(2, 2, 3), uniform(1, 3, 3), uniform(1, 2, 4), uniform(1 + high, 2, 3),
                         uniform(1, 2 + high, 3), uniform(1, 2, 3 + high)})
    EXPECT_TRUE(seen.insert(x).second);
}

constexpr int kDraws = 200000;

TEST(Uniform, FillsTheUnitIntervalEvenly) {
  std::vector<int> bins(20);
  for (int i = 0; i < kDraws; ++i) {
    const double x = uniform(5, stream_of("uniform"), i);
    ASSERT_TRUE(0 <= x && x < 1);
    ++bins[static_cast<std::size_t>(x * 20)];
  }
  for (const int count : bins) EXPECT_NEAR(count, kDraws / 20, 5 * std::sqrt(kDraws / 20));
}

TEST(Normal, HasTheMomentsAndTailOfTheStandardNormal) {
  double sum = 0, square = 0, fourth = 0;
  int beyond_two = 0;
  for (int i = 0; i < kDraws; ++i) {
    const double x = normal(5, stream_of("normal"), i);
    ASSERT_TRUE(std::isfinite(x));
    sum += x, square += x * x, fourth += x * x * x * x;
    beyond_two += std::abs(x) > 2;
  }
  // Five standard errors each.
  EXPECT_NEAR(sum / kDraws, 0, 5 / std::sqrt(kDraws));
  EXPECT_NEAR(square / kDraws, 1, 5 * std::sqrt(2.0 / kDraws));
  EXPECT_NEAR(fourth / kDraws, 3, 5 * std::sqrt(96.0 / kDraws));
  EXPECT_NEAR(beyond_two / double{kDraws}, 0.0455, 5 * std::sqrt(0.0455 / kDraws));
}

TEST(Normal, NeighboursAreUncorrelated) {
  double product = 0;
  for (int i = 0; i < kDraws; ++i) product += normal(1, 7, i) * normal(1, 7, i + 1);
  EXPECT_NEAR(product / kDraws, 0, 5 / std::sqrt(kDraws));
}

}  // namespace
}  // namespace transmamba
