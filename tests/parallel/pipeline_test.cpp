#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "parallel/pipeline/schedule.h"
#include "tests/core/files.h"

namespace transmamba {
namespace {

using ::testing::AllOf;
using testing::error_of;
using ::testing::HasSubstr;

/// "F0 F1 B0": way and micro-batch; with chunks, "F1.0": chunk and micro-batch.
std::string text(const Schedule& schedule, std::size_t rank) {
  std::string out;
  for (const Action& a : schedule.ranks.at(rank)) {
    if (!out.empty()) out += ' ';
    out += a.kind == Action::Kind::forward ? 'F' : 'B';
    if (schedule.chunks > 1) out += std::to_string(a.chunk) + ".";
    out += std::to_string(a.micro_batch);
  }
  return out;
}

std::vector<double> seconds(const Schedule& schedule, double each) {
  return std::vector<double>(static_cast<std::size_t>(schedule.pp() * schedule.chunks), each);
}

TEST(Schedule, OneForwardOneBackwardIsThePapersFigure) {
  const Schedule schedule = one_forward_one_backward(4, 1, 5);
  EXPECT_EQ(text(schedule, 0), "F0 F1 F2 F3 B0 F4 B1 B2 B3 B4");
  EXPECT_EQ(text(schedule, 2), "F0 F1 B0 F2 B1 F3 B2 F4 B3 B4");
  EXPECT_EQ(text(schedule, 3), "F0 B0 F1 B1 F2 B2 F3 B3 F4 B4");
}

TEST(Schedule, FewMicroBatchesAreAllWarmUp) {
  const Schedule schedule = one_forward_one_backward(4, 1, 2);
  EXPECT_EQ(text(schedule, 0), "F0 F1 B0 B1");
  EXPECT_EQ(text(schedule, 3), "F0 B0 F1 B1");
  EXPECT_NO_THROW(check_schedule(schedule));
}

TEST(Schedule, InterleavedIsMegatrons) {
  const Schedule schedule = one_forward_one_backward(2, 2, 4);
  // Warm-up of rank 0: (2 - 0 - 1) * 2 + (2 - 1) * 2 = 4; of rank 1: 2.
  EXPECT_EQ(text(schedule, 0),
            "F0.0 F0.1 F1.0 F1.1 F0.2 B1.0 F0.3 B1.1 F1.2 B0.0 F1.3 B0.1 B1.2 B1.3 B0.2 B0.3");
  EXPECT_EQ(text(schedule, 1),
            "F0.0 F0.1 F1.0 B1.0 F1.1 B1.1 F0.2 B0.0 F0.3 B0.1 F1.2 B1.2 F1.3 B1.3 B0.2 B0.3");
}

TEST(Schedule, InterleavingNeedsWholeGroups) {
  EXPECT_THAT(error_of([] { one_forward_one_backward(4, 2, 6); }),
              AllOf(HasSubstr("[pipeline]"), HasSubstr("6 micro-batches"), HasSubstr("4 and 8")));
}

TEST(Schedule, ForwardOnlyTakesAnyNumberOfMicroBatches) {
  EXPECT_EQ(text(forward_only(2, 1, 3), 1), "F0 F1 F2");
  EXPECT_EQ(text(forward_only(2, 2, 3), 0), "F0.0 F0.1 F1.0 F1.1 F0.2 F1.2");
}

TEST(Schedule, EveryScheduleWeMakeChecksOut) {
  for (int pp = 1; pp <= 6; ++pp) {
    for (int chunks = 1; chunks <= 4; ++chunks) {
      for (std::int64_t m = 1; m <= 3 * pp; ++m) {
        EXPECT_NO_THROW(check_schedule(forward_only(pp, chunks, m))) << pp << " " << chunks << " " << m;
        if (chunks > 1 && m % pp != 0) continue;
        EXPECT_NO_THROW(check_schedule(one_forward_one_backward(pp, chunks, m)))
            << pp << " " << chunks << " " << m;
      }
    }
  }
}

/// The complaint about a good schedule after `harm` was done to it.
std::string complaint(const std::function<void(Schedule&)>& harm) {
  Schedule schedule = one_forward_one_backward(2, 2, 4);
  harm(schedule);
  return error_of([&] { check_schedule(schedule); });
}

TEST(CheckSchedule, FindsAMissingAction) {
  EXPECT_THAT(
      complaint([](Schedule& s) { s.ranks[1].pop_back(); }),
      AllOf(HasSubstr("rank 1"), HasSubstr("backward of stage 1, micro-batch 3"), HasSubstr("0 .. 14")));
  EXPECT_THAT(complaint([](Schedule& s) { s.ranks[0].clear(); }),
              AllOf(HasSubstr("rank 0"), HasSubstr("forward of stage 0, micro-batch 0 is in none")));
}

TEST(CheckSchedule, FindsADuplicate) {
  EXPECT_THAT(complaint([](Schedule& s) { s.ranks[0][3] = s.ranks[0][2]; }),
              AllOf(HasSubstr("rank 0, slot 3"), HasSubstr("forward of stage 2, micro-batch 0"),
                    HasSubstr("already in slot 2")));
}

TEST(CheckSchedule, FindsAnUnknownChunkOrMicroBatch) {
  EXPECT_THAT(complaint([](Schedule& s) { s.ranks[1][5].chunk = 2; }),
              AllOf(HasSubstr("rank 1, slot 5"), HasSubstr("stage 5"), HasSubstr("chunk from 0 to 1")));
  EXPECT_THAT(complaint([](Schedule& s) { s.ranks[1][5].micro_batch = 4; }),
              AllOf(HasSubstr("rank 1, slot 5"), HasSubstr("stage 3"), HasSubstr("micro-batch from 0 to 3")));
}

TEST(CheckSchedule, FindsABackwardBeforeItsForward) {
  EXPECT_THAT(
      complaint([](Schedule& s) { std::swap(s.ranks[1][2], s.ranks[1][3]); }),
      AllOf(HasSubstr("rank 1, slot 2"), HasSubstr("backward of stage 3, micro-batch 0 comes before")));
}

TEST(CheckSchedule, FindsABackwardWhereThereShouldBeNone) {
  EXPECT_THAT(complaint([](Schedule& s) { s.has_backward = false; }),
              AllOf(HasSubstr("rank 0, slot 5"), HasSubstr("stage 2"), HasSubstr("no backward")));
}

TEST(CheckSchedule, FindsADeadlockThatNoRankCanSeeAlone) {
  // Each rank has every action once and every backward after its forward; but rank 0 wants micro-batch 0 back
  // before it sends micro-batch 1, and rank 1 wants micro-batch 1 first.
  Schedule schedule = one_forward_one_backward(2, 1, 2);
  using enum Action::Kind;
  schedule.ranks[0] = {{forward, 0, 0}, {backward, 0, 0}, {forward, 0, 1}, {backward, 0, 1}};
  schedule.ranks[1] = {{forward, 0, 1}, {backward, 0, 1}, {forward, 0, 0}, {backward, 0, 0}};
  EXPECT_THAT(
      error_of([&] { check_schedule(schedule); }),
      AllOf(HasSubstr("deadlocks"), HasSubstr("rank 0, slot 1: backward of stage 0, micro-batch 0"),
            HasSubstr("rank 1, slot 0: forward of stage 1, micro-batch 1 waits for the forward of stage "
                      "0 on rank 0")));
}

TEST(CheckSchedule, FindsTransfersThatAreReceivedInAnotherOrder) {
  constexpr auto forward = Action::Kind::forward, backward = Action::Kind::backward;
  Schedule schedule = one_forward_one_backward(2, 1, 2);
  schedule.ranks[0] = {{forward, 0, 0}, {forward, 0, 1}, {backward, 0, 0}, {backward, 0, 1}};
  schedule.ranks[1] = {{forward, 0, 1}, {backward, 0, 1}, {forward, 0, 0}, {backward, 0, 0}};
  EXPECT_EQ(
      error_of([&] { check_schedule(schedule); }),
      "[pipeline] forward transfers from rank 0: number 0 sent is that of micro-batch 0 between stages 0 "
      "and 1, received that of micro-batch 1 between stages 0 and 1");
}

/// All forwards first, and a last rank that sends gradients from the start.
TEST(CheckSchedule, FindsADeadlockOfSendsThatWaitForTheirReceives) {
  Schedule schedule = one_forward_one_backward(2, 1, 8);
  schedule.ranks[0] = forward_only(2, 1, 8).ranks[0];
  for (std::int64_t m = 0; m < 8; ++m) schedule.ranks[0].push_back({Action::Kind::backward, 0, m});
  EXPECT_EQ(error_of([&] { check_schedule(schedule); }),
            "[pipeline] the schedule deadlocks where sends wait for their receives: rank 0 waits for forward "
            "transfer 2 from rank 0; rank 1 waits for backward transfer 0 from rank 1");
}

TEST(CheckSchedule, RejectsEveryRemovedAndMostSwappedActions) {
  const Schedule good = one_forward_one_backward(3, 2, 6);
  for (std::size_t rank = 0; rank < 3; ++rank) {
    for (std::size_t slot = 0; slot < good.ranks[rank].size(); ++slot) {
      Schedule bad = good;
      bad.ranks[rank].erase(bad.ranks[rank].begin() + static_cast<std::ptrdiff_t>(slot));
      EXPECT_THROW(check_schedule(bad), Error);
      bad = good;
      bad.ranks[rank].push_back(bad.ranks[rank][slot]);
      EXPECT_THROW(check_schedule(bad), Error);
    }
  }
}

TEST(Timeline, BubbleOfEqualStagesIsTheTextbooks) {
  for (const int pp : {2, 4, 8}) {
    for (const std::int64_t m : {pp, 2 * pp, 5 * pp}) {
      const Schedule plain = one_forward_one_backward(pp, 1, m);
      const Timeline timeline = simulate(plain, seconds(plain, 1), seconds(plain, 2));
      EXPECT_NEAR(timeline.seconds, 3.0 * static_cast<double>(m + pp - 1), 1e-9);
      EXPECT_NEAR(timeline.bubble, (pp - 1.0) / static_cast<double>(m + pp - 1), 1e-9);
      for (const int chunks : {2, 4}) {
        const Schedule mixed = one_forward_one_backward(pp, chunks, m);
        EXPECT_NEAR(simulate(mixed, seconds(mixed, 1), seconds(mixed, 2)).bubble,
                    (pp - 1.0) / static_cast<double>(chunks * m + pp - 1), 1e-9)
            << pp << " " << chunks << " " << m;
      }
    }
  }
}

TEST(Timeline, AddsTransfersBetweenRanksOnly) {
  const Schedule two = one_forward_one_backward(2, 1, 1);
  EXPECT_DOUBLE_EQ(simulate(two, seconds(two, 1), seconds(two, 2), 0.5).seconds, 7);
  const Schedule one = one_forward_one_backward(1, 2, 1);
  EXPECT_DOUBLE_EQ(simulate(one, seconds(one, 1), seconds(one, 2), 0.5).seconds, 6);
}

TEST(Timeline, FollowsTheSlowestStage) {
  const Schedule schedule = one_forward_one_backward(2, 1, 10);
  const std::vector<double> forward{1, 3}, backward{2, 6};
  EXPECT_DOUBLE_EQ(simulate(schedule, forward, backward).seconds, 10 * 9 + 1 + 2);
}

TEST(Drawing, ShowsALineARank) {
  const Schedule schedule = one_forward_one_backward(2, 1, 2);
  const Timeline timeline = simulate(schedule, seconds(schedule, 1), seconds(schedule, 2));
  EXPECT_EQ(draw(schedule, timeline, 27 + 9),
            "rank 0 |0--1--      a=====   b=====|\n"
            "rank 1 |   0--a=====1--b=====      |\n"
            "0- forward, a= backward of micro-batch 0 (mod 10)\n");
}

TEST(Drawing, NeverPassesItsWidth) {
  for (const int width : {30, 80, 100, 131}) {
    const Schedule schedule = one_forward_one_backward(12, 2, 48);
    const Timeline timeline = simulate(schedule, seconds(schedule, 1), seconds(schedule, 2.1));
    std::istringstream lines(draw(schedule, timeline, width));
    int ranks = 0;
    for (std::string line; std::getline(lines, line);) {
      if (!line.starts_with("rank")) continue;
      EXPECT_LE(static_cast<int>(line.size()), width);
      ++ranks;
    }
    EXPECT_EQ(ranks, 12);
  }
}

}  // namespace
}  // namespace transmamba
