// What a run says of its communication, of calls and times by hand.
#include "launch/traffic_report.h"

#include <gtest/gtest.h>

#include "parallel/comm/threads.h"

namespace transmamba {
namespace {

/// One call that took `seconds`, of which the rank waited for `exposed`.
void call(Communicator& world, double seconds, double exposed) {
  world.recorder().add("data", "parameters",
                       {.calls = 1, .bytes = 8, .seconds = seconds, .exposed = exposed});
}

TEST(TrafficReport, CountsWaitsForWhatAStepLeftUnderWayAsItsTimeToo) {
  run_as_threads(1, [](Communicator& world) {
    TrafficReport report(world);
    call(world, 0.25, 0.25), report.add_step(1);
    call(world, 4, 3), report.add_rest(3);
    const TrafficSummary summary = report.summary();
    EXPECT_EQ(summary.steps, 1);
    EXPECT_EQ(summary.seconds_per_step, 4);
    ASSERT_EQ(summary.lines.size(), 1U);
    EXPECT_EQ(summary.lines[0].calls, 2);
    EXPECT_EQ(summary.lines[0].seconds, 4.25);
    EXPECT_EQ(summary.lines[0].exposed, 3.25);
  });
}

TEST(TrafficReport, CountsAsManyRestsAsSteps) {
  run_as_threads(1, [](Communicator& world) {
    TrafficReport report(world);
    call(world, 64, 64), report.leave_out_step();
    call(world, 1, 1), report.add_step(1);  // waited for what the step before had left
    call(world, 2, 2), report.add_step(2);
    call(world, 64, 64), report.add_rest(64);
    EXPECT_EQ(report.summary().seconds_per_step, 1.5);
    EXPECT_EQ(report.summary().lines[0].calls, 1);
  });
  run_as_threads(1, [](Communicator& world) {
    TrafficReport report(world);
    call(world, 1, 1), report.add_step(1);
    call(world, 64, 64), report.leave_out_step();  // waited for what the step before had left
    call(world, 2, 2), report.add_rest(2);
    call(world, 64, 64), report.add_rest(64);
    EXPECT_EQ(report.summary().seconds_per_step, 3);
    EXPECT_EQ(report.summary().lines[0].exposed, 3);
  });
}

}  // namespace
}  // namespace transmamba
