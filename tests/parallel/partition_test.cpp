#include "parallel/pipeline/partition.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <random>

#include "parallel/pipeline/schedule.h"
#include "tests/core/files.h"

namespace transmamba {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::error_of;
using ::testing::HasSubstr;

double dearest(const std::vector<Stage>& stages, const std::vector<double>& layer, double embedding,
               double head) {
  double most = 0;
  for (const Stage& s : stages) {
    double sum = (s.is_first ? embedding : 0) + (s.is_last ? head : 0);
    for (std::int64_t i = s.begin; i < s.end; ++i) sum += layer[static_cast<std::size_t>(i)];
    most = std::max(most, sum);
  }
  return most;
}

/// Least over all divisions, tried one by one.
double by_hand(const std::vector<double>& layer, double embedding, double head, std::size_t stages,
               std::vector<std::size_t> cuts = {0}) {
  if (cuts.size() == stages) {
    std::vector<Stage> division;
    for (std::size_t s = 0; s < stages; ++s) {
      const std::size_t end = s + 1 < stages ? cuts[s + 1] : layer.size();
      division.push_back(
          {static_cast<std::int64_t>(cuts[s]), static_cast<std::int64_t>(end), s == 0, s + 1 == stages});
    }
    return dearest(division, layer, embedding, head);
  }
  double least = 1e300;
  for (std::size_t next = cuts.back() + 1; next < layer.size(); ++next) {
    auto more = cuts;
    more.push_back(next);
    least = std::min(least, by_hand(layer, embedding, head, stages, more));
  }
  return least;
}

TEST(Partition, CountsEmbeddingAndHead) {
  EXPECT_THAT(partition(std::vector<double>(8, 1.0), 0, 2, 2),
              ElementsAre(Stage{0, 5, true, false}, Stage{5, 8, false, true}));
  EXPECT_THAT(partition(std::vector<double>(8, 1.0), 2, 0, 2),
              ElementsAre(Stage{0, 3, true, false}, Stage{3, 8, false, true}));
  EXPECT_THAT(partition(std::vector<double>(3, 1.0), 1, 1, 1), ElementsAre(Stage{0, 3, true, true}));
}

TEST(Partition, PutsFewLayersBesideADearOne) {
  EXPECT_THAT(partition(std::vector<double>{1, 1, 1, 9, 1, 1}, 0, 0, 3),
              ElementsAre(Stage{0, 3, true, false}, Stage{3, 4, false, false}, Stage{4, 6, false, true}));
}

TEST(Partition, BreaksTiesTowardsTheMoreEven) {
  // The last stage costs 10 whatever the first ones do: 2 and 2 rather than 1 and 3.
  EXPECT_THAT(partition(std::vector<double>{1, 1, 1, 1, 1}, 0, 9, 3),
              ElementsAre(Stage{0, 2, true, false}, Stage{2, 4, false, false}, Stage{4, 5, false, true}));
  EXPECT_THAT(partition(std::vector<double>(6, 0.0), 0, 0, 3),
              ElementsAre(Stage{0, 2, true, false}, Stage{2, 4, false, false}, Stage{4, 6, false, true}));
}

TEST(Partition, IsTheBestOfAllDivisions) {
  std::mt19937 random(7);
  for (int trial = 0; trial < 300; ++trial) {
    std::vector<double> layer(1 + random() % 9);
    for (double& c : layer) c = static_cast<double>(random() % 10);
    const std::size_t stages = 1 + random() % layer.size();
    const auto embedding = static_cast<double>(random() % 10), head = static_cast<double>(random() % 10);
    const std::vector<Stage> found = partition(layer, embedding, head, static_cast<std::int64_t>(stages));
    ASSERT_EQ(found.size(), stages);
    std::int64_t next = 0;
    for (const Stage& s : found) {
      EXPECT_EQ(s.begin, next);
      EXPECT_LT(s.begin, s.end);
      next = s.end;
    }
    EXPECT_EQ(next, static_cast<std::int64_t>(layer.size()));
    EXPECT_DOUBLE_EQ(dearest(found, layer, embedding, head), by_hand(layer, embedding, head, stages));
  }
}

double seconds_of(const PipelineLoad& load, const std::vector<Stage>& stages) {
  std::vector<double> forward, backward;
  for (const Stage& s : stages) {
    Seconds sum;
    for (std::int64_t i = s.begin; i < s.end; ++i) sum += load.layer[static_cast<std::size_t>(i)];
    if (s.is_first) sum += load.embedding;
    if (s.is_last) sum += load.head;
    forward.push_back(sum.forward), backward.push_back(sum.backward);
  }
  return simulate(one_forward_one_backward(load.pp, load.chunks, load.micro_batches), forward, backward,
                  load.transfer)
      .seconds;
}

/// Least over all divisions, tried one by one; the first `stages.size()` are given.
double quickest_by_hand(const PipelineLoad& load, std::vector<Stage> stages = {}) {
  const auto layers = std::ssize(load.layer), begin = stages.empty() ? 0 : stages.back().end;
  const auto left = std::int64_t{load.pp} * load.chunks - std::ssize(stages);
  if (left == 0) return seconds_of(load, stages);
  double least = 1e300;
  for (std::int64_t end = left == 1 ? layers : begin + 1; end + left - 1 <= layers; ++end) {
    auto more = stages;
    more.push_back({begin, end, begin == 0, left == 1});
    least = std::min(least, quickest_by_hand(load, more));
  }
  return least;
}

TEST(QuickestPartition, IsNeverSlowerThanThatOfEvenStagesAndMostlyTheQuickestOfAll) {
  std::mt19937 random(7);
  int quickest = 0, quicker = 0;
  const int trials = 200;
  for (int trial = 0; trial < trials; ++trial) {
    PipelineLoad load;
    load.pp = 2 + static_cast<int>(random() % 2);
    load.chunks = 1 + static_cast<int>(random() % (load.pp == 2 ? 3 : 2));
    load.micro_batches = load.pp * (1 + static_cast<std::int64_t>(random() % 4));
    load.transfer = 0.1 * static_cast<double>(random() % 4);
    const auto some = [&] {
      const auto forward = static_cast<double>(1 + random() % 9);
      return Seconds{forward, forward * (1.5 + 0.25 * static_cast<double>(random() % 4))};
    };
    load.embedding = some(), load.head = some();
    for (std::size_t i = static_cast<std::size_t>(load.pp * load.chunks) + random() % 6; i > 0; --i)
      load.layer.push_back(some());
    std::vector<double> totals;
    for (const Seconds& layer : load.layer) totals.push_back(layer.total());
    const std::vector<Stage> even =
        partition(totals, load.embedding.total(), load.head.total(), load.pp * load.chunks);
    const double found = seconds_of(load, quickest_partition(load)), start = seconds_of(load, even);
    EXPECT_LE(found, start * (1 + 1e-12));
    const double least = quickest_by_hand(load);
    EXPECT_LE(found, 1.1 * least);
    quickest += found <= least * (1 + 1e-9), quicker += found < start * (1 - 1e-9);
  }
  EXPECT_GE(quickest, trials * 9 / 10);
  EXPECT_GE(quicker, trials / 4);
}

TEST(QuickestPartition, EvensOutRanksNotStages) {
  // Stages 0 and 2 are rank 0's, 1 and 3 rank 1's: the head in stage 3 is paid for with layers of stage 1 as
  // well as its own.
  const PipelineLoad load{.layer = std::vector<Seconds>(16, {1, 2}),
                          .embedding = {0, 0},
                          .head = {4, 8},
                          .pp = 2,
                          .chunks = 2,
                          .micro_batches = 32};
  const std::vector<Stage> stages = quickest_partition(load);
  ASSERT_EQ(stages.size(), 4U);
  const auto layers = [&](int s) {
    return stages[static_cast<std::size_t>(s)].end - stages[static_cast<std::size_t>(s)].begin;
  };
  EXPECT_EQ(layers(0) + layers(2), 10);
  EXPECT_EQ(layers(1) + layers(3), 6);
}

TEST(QuickestPartition, IsQuickAndTheSameAgain) {
  PipelineLoad load;
  load.embedding = {0.1, 0.1}, load.head = {2, 4}, load.transfer = 0.1, load.pp = 16, load.chunks = 4;
  for (int i = 0; i < 96; ++i) load.layer.push_back({1.0 + i % 2 * (i % 7), 2.0 + i % 2 * (i % 7)});
  std::vector<double> totals;
  for (const Seconds& layer : load.layer) totals.push_back(layer.total());
  const auto even = partition(totals, load.embedding.total(), load.head.total(), 64);
  for (const std::int64_t micro_batches : {64, 512}) {
    load.micro_batches = micro_batches;
    const auto begin = std::chrono::steady_clock::now();
    const std::vector<Stage> stages = quickest_partition(load);
    // A tenth of that on a core of its own.
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
    EXPECT_EQ(stages, quickest_partition(load));
    EXPECT_LT(seconds_of(load, stages), seconds_of(load, even));
  }
}

TEST(Partition, NeedsALayerAStage) {
  EXPECT_THAT(error_of([] {
                partition(std::vector<double>{1, 1}, 0, 0, 3);
              }),
              AllOf(HasSubstr("3 stages"), HasSubstr("2 layers")));
}

}  // namespace
}  // namespace transmamba
