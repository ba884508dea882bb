#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "parallel/context/layout.h"
#include "tests/core/files.h"

namespace transmamba {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::error_of;
using ::testing::HasSubstr;

std::vector<double> uniform(std::int64_t tokens) {
  return std::vector<double>(static_cast<std::size_t>(tokens), 1.0);
}

/// Attention over the tokens before, for tokens before P; nothing from P on.
std::vector<double> attention(std::int64_t tokens, std::int64_t transpoint) {
  std::vector<double> cost(static_cast<std::size_t>(tokens), 0.0);
  for (std::int64_t i = 0; i < transpoint; ++i)
    cost[static_cast<std::size_t>(i)] = static_cast<double>(i + 1);
  return cost;
}

ContextLayout layout(const std::string& name, std::int64_t tokens, std::int64_t cp, std::int64_t chunk = 0) {
  return make_layout(name, tokens, cp, chunk, uniform(tokens));
}

/// Every token has one rank, every rank as many tokens, and segments ascend without touching.
void expect_partition(const ContextLayout& dealt, std::int64_t tokens, std::int64_t cp) {
  ASSERT_EQ(static_cast<std::int64_t>(dealt.segments.size()), cp);
  EXPECT_EQ(dealt.most_tokens(), tokens / cp);
  std::vector<int> owners(static_cast<std::size_t>(tokens), 0);
  for (const auto& mine : dealt.segments) {
    std::int64_t count = 0, last = -1;
    for (const Segment& s : mine) {
      ASSERT_LT(s.begin, s.end);
      ASSERT_GT(s.begin, last) << "segments touch or are out of order";
      ASSERT_LE(s.end, tokens);
      for (std::int64_t i = s.begin; i < s.end; ++i) ++owners[static_cast<std::size_t>(i)];
      count += s.size(), last = s.end;
    }
    EXPECT_EQ(count, tokens / cp);
  }
  EXPECT_THAT(owners, ::testing::Each(1));
}

TEST(ContextLayout, ContiguousGivesEachRankOneRun) {
  EXPECT_THAT(
      layout("contiguous", 12, 3).segments,
      ElementsAre(ElementsAre(Segment{0, 4}), ElementsAre(Segment{4, 8}), ElementsAre(Segment{8, 12})));
}

TEST(ContextLayout, ZigzagPairsTheFirstRunWithTheLast) {
  EXPECT_THAT(layout("zigzag", 12, 3).segments,
              ElementsAre(ElementsAre(Segment{0, 2}, Segment{10, 12}),
                          ElementsAre(Segment{2, 4}, Segment{8, 10}), ElementsAre(Segment{4, 8})));
}

TEST(ContextLayout, StripedDealsForthAndBackAndMergesWhereItTurns) {
  EXPECT_THAT(layout("striped", 12, 2, 1).segments,
              ElementsAre(ElementsAre(Segment{0, 1}, Segment{3, 5}, Segment{7, 9}, Segment{11, 12}),
                          ElementsAre(Segment{1, 3}, Segment{5, 7}, Segment{9, 11})));
  // An odd number of rounds still gives every rank as many tokens.
  EXPECT_THAT(layout("striped", 12, 2, 2).segments, ElementsAre(ElementsAre(Segment{0, 2}, Segment{6, 10}),
                                                                ElementsAre(Segment{2, 6}, Segment{10, 12})));
}

TEST(ContextLayout, StripedChoosesAChunkThatFits) {
  EXPECT_EQ(layout("striped", 8192, 4), layout("striped", 8192, 4, 256));
  EXPECT_EQ(layout("striped", 12, 4), layout("striped", 12, 4, 1));
}

TEST(ContextLayout, OneRankHoldsEverything) {
  for (const char* name : {"contiguous", "zigzag", "balanced"})
    EXPECT_THAT(layout(name, 7, 1).segments, ElementsAre(ElementsAre(Segment{0, 7}))) << name;
  EXPECT_THAT(layout("striped", 7, 1, 1).segments, ElementsAre(ElementsAre(Segment{0, 7})));
}

TEST(ContextLayout, BalancedNeedsNoMoreSegmentsThanTheCostsAskFor) {
  EXPECT_EQ(layout("balanced", 24, 4), layout("contiguous", 24, 4)) << "equal costs";
  const std::vector<double> linear = attention(4096, 4096);
  EXPECT_EQ(make_layout("balanced", 4096, 4, 0, linear), layout("zigzag", 4096, 4)) << "linear costs";
}

TEST(ContextLayout, EveryLayoutDealsEveryTokenOnce) {
  std::mt19937 random(3);
  for (int trial = 0; trial < 200; ++trial) {
    const std::int64_t cp = 1 + random() % 9, chunk = 1 + random() % 5, rounds = 1 + random() % 7;
    const std::int64_t tokens = cp * chunk * rounds;
    std::vector<double> cost(static_cast<std::size_t>(2 * tokens));
    for (double& c : cost) c = static_cast<double>(random() % 100);
    const auto all = std::span<const double>(cost);
    expect_partition(make_layout("contiguous", tokens, cp, 0, {}), tokens, cp);
    expect_partition(make_layout("zigzag", 2 * tokens, cp, 0, {}), 2 * tokens, cp);
    expect_partition(make_layout("striped", tokens, cp, chunk, {}), tokens, cp);
    expect_partition(make_layout("striped", tokens, cp, 0, {}), tokens, cp);
    expect_partition(make_layout("balanced", tokens, cp, 0, all.first(tokens)), tokens, cp);
    expect_partition(make_layout("balanced", 2 * tokens, cp, 0, all), 2 * tokens, cp);
    EXPECT_EQ(make_layout("balanced", 2 * tokens, cp, 0, all),
              make_layout("balanced", 2 * tokens, cp, 0, all));
  }
}

TEST(ContextLayout, BalancedIsNeverWorseThanContiguous) {
  std::mt19937 random(5);
  for (int trial = 0; trial < 100; ++trial) {
    const std::int64_t cp = 1 + random() % 6, tokens = cp * (1 + random() % 40);
    std::vector<double> cost(static_cast<std::size_t>(tokens));
    for (double& c : cost) c = static_cast<double>(random() % 100);
    EXPECT_LE(imbalance(make_layout("balanced", tokens, cp, 0, cost), cost),
              imbalance(make_layout("contiguous", tokens, cp, 0, cost), cost) + 1e-9);
  }
}

/// Of a run, by the cost of each token.
std::function<double(Segment)> run_cost(const std::vector<double>& cost) {
  std::vector<double> before{0};
  for (const double c : cost) before.push_back(before.back() + c);
  return [before](Segment s) {
    return before[static_cast<std::size_t>(s.end)] - before[static_cast<std::size_t>(s.begin)];
  };
}

TEST(ContextLayout, EvenRunsCostTheSameAndLeaveNoRankWithoutTokens) {
  std::mt19937 random(7);
  for (int trial = 0; trial < 100; ++trial) {
    const std::int64_t cp = 1 + random() % 8, tokens = cp * (1 + random() % 500);
    std::vector<double> cost(static_cast<std::size_t>(tokens));
    for (double& c : cost) c = trial % 10 == 0 ? 0 : static_cast<double>(random() % 100);
    const ContextLayout runs = even_runs(tokens, cp, run_cost(cost));
    ASSERT_EQ(std::ssize(runs.segments), cp);
    std::int64_t end = 0;
    for (const auto& mine : runs.segments) {
      ASSERT_EQ(mine.size(), 1U);
      EXPECT_EQ(mine[0].begin, end);
      EXPECT_GT(mine[0].size(), 0);
      end = mine[0].end;
    }
    EXPECT_EQ(end, tokens);
  }
  const std::vector<double> prefix = attention(8192, 2048);
  const ContextLayout runs = even_runs(8192, 4, run_cost(prefix));
  EXPECT_LT(imbalance(runs, prefix), 1.05);
  // Where runs cost something by themselves, the first one here, others take tokens from it.
  const auto dear = [cost = run_cost(uniform(8192))](Segment s) {
    return cost(s) + (s.begin == 0 ? 1024 : 0);
  };
  EXPECT_EQ(even_runs(8192, 4, dear).segments[0][0].size(), 1280) << "and the others 2304";
  EXPECT_GT(imbalance(layout("contiguous", 8192, 4), prefix), 1.9);
  for (const auto& mine : runs.segments) EXPECT_EQ(mine[0].begin % 16, 0);
  EXPECT_EQ(even_runs(8192, 4, run_cost(uniform(8192))), layout("contiguous", 8192, 4));
}

TEST(ContextLayout, ZigzagIsEvenOnlyWhereAllTokensAttend) {
  for (const std::int64_t cp : {2, 4, 8}) {
    const ContextLayout zigzag = layout("zigzag", 8192, cp);
    EXPECT_LT(imbalance(zigzag, attention(8192, 8192)), 1.01) << "P = T, cp " << cp;
    // DESIGN section 4: at P = T/4 the busiest rank does 4 - 4/cp times the mean, once cp is large enough to
    // cut inside the prefix.
    if (cp >= 4) {
      EXPECT_NEAR(imbalance(zigzag, attention(8192, 2048)), 4 - 4.0 / static_cast<double>(cp), 0.01) << cp;
    }
    EXPECT_LT(imbalance(make_layout("balanced", 8192, cp, 0, attention(8192, 2048)), attention(8192, 2048)),
              1.1)
        << "balanced, P = T / 4, cp " << cp;
  }
}

TEST(ContextLayout, BalancedInPartsIsEvenInEach) {
  // Two parts that are even together however tokens are dealt, and apart only where each rank has some of
  // both.
  const PartCosts cost = [](Segment s) {
    const auto first = static_cast<double>(std::clamp<std::int64_t>(32, s.begin, s.end) - s.begin);
    return std::vector<double>{first, static_cast<double>(s.size()) - first};
  };
  EXPECT_EQ(layout("balanced", 64, 2), layout("contiguous", 64, 2));
  const ContextLayout dealt = balanced_layout(64, 2, cost);
  expect_partition(dealt, 64, 2);
  for (const auto& mine : dealt.segments) {
    double first = 0;
    for (const Segment& s : mine) first += cost(s)[0];
    EXPECT_EQ(first, 16);
  }
}

TEST(ContextLayout, BalancedIsQuickOnAMillionTokens) {
  const std::vector<double> cost = attention(1 << 20, 1 << 19);
  EXPECT_LT(imbalance(make_layout("balanced", 1 << 20, 64, 0, cost), cost), 1.03);
}

TEST(ContextLayout, SaysWhichNumbersWouldWork) {
  EXPECT_THAT(error_of([] { layout("contiguous", 100, 8); }),
              AllOf(HasSubstr("[context]"), HasSubstr("100"), HasSubstr("8"), HasSubstr("96 and 104"),
                    HasSubstr("nearest cp: 5 and 10")));
  EXPECT_THAT(error_of([] { layout("balanced", 3, 4); }),
              AllOf(HasSubstr("balanced"), HasSubstr("seq_len that would do: 4"), HasSubstr("cp: 3")));
  EXPECT_THAT(error_of([] { layout("zigzag", 36, 4); }),
              AllOf(HasSubstr("zigzag"), HasSubstr("32 and 40"), HasSubstr("nearest cp: 3 and 6")));
  EXPECT_THAT(error_of([] { layout("striped", 96, 4, 5); }),
              AllOf(HasSubstr("96"), HasSubstr("4 x 5"), HasSubstr("80 and 100"),
                    HasSubstr("nearest cp_chunk: 4 and 6")));
  EXPECT_THAT(error_of([] { layout("spiral", 8, 2); }), HasSubstr("contiguous, zigzag, striped, balanced"));
  EXPECT_THAT(error_of([] { make_layout("balanced", 8, 2, 0, uniform(7)); }), HasSubstr("8 tokens, got 7"));
  EXPECT_THAT(error_of([] {
                auto cost = uniform(8);
                cost[5] = -1;
                make_layout("balanced", 8, 2, 0, cost);
              }),
              HasSubstr("token 5"));
}

}  // namespace
}  // namespace transmamba
