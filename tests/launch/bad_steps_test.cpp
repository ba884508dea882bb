// Which steps are bad, and when there are too many.
#include "launch/bad_steps.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace transmamba {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

StepResult fine(double loss) { return {.loss = loss, .grad_norm = 0.5}; }
StepResult bad(double loss) { return {.loss = loss, .grad_norm = 0.5, .skipped = true}; }

TEST(BadSteps, AreTooManyOnlyInARow) {
  TrainConfig config;
  config.max_skipped = 2;
  BadSteps steps(config);
  std::int64_t step = 0;
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 2; ++i) steps.add(++step, bad(std::nan("")));
    EXPECT_FALSE(steps.too_many());
    steps.add(++step, fine(2.5));
  }
  EXPECT_EQ(steps.skipped(), 6);
  for (int i = 0; i < 3; ++i) steps.add(++step, bad(kInfinity));
  EXPECT_TRUE(steps.too_many());
  EXPECT_THAT(steps.why("rank 1: the loss"),
              AllOf(HasSubstr("step 12  skipped, 3 in a row"), HasSubstr("loss inf and gradient norm 0.5"),
                    HasSubstr("; not finite: rank 1: the loss")));
  EXPECT_EQ(steps.last_fine(), "step 9 was fine, with loss 2.5000 and gradient norm 0.500");
}

TEST(BadSteps, AreSpikesOnlyWhereThatIsAskedForAndTheMeanIsKnown) {
  const TrainConfig without;
  TrainConfig config;
  config.spike_guard = 3;
  BadSteps off(without);
  BadSteps steps(config);
  for (int step = 1; step <= 10; ++step) {
    EXPECT_EQ(steps.largest_loss(), kInfinity);
    steps.add(step, fine(step % 2 ? 1.5 : 2.5));
    off.add(step, fine(2));
  }
  EXPECT_EQ(off.largest_loss(), kInfinity);
  EXPECT_NEAR(steps.largest_loss(), 3 * 2.0, 1e-12);
  steps.add(11, bad(6.5));
  EXPECT_NEAR(steps.largest_loss(), 3 * 2.0, 1e-12) << "a spike is no part of the mean";
  EXPECT_THAT(steps.why(""), HasSubstr("loss 6.5000 is above 3 times 2.0000"));
  for (int step = 12; step < 400; ++step) steps.add(step, fine(1));
  EXPECT_NEAR(steps.largest_loss(), 3, 0.01) << "old losses are forgotten";
}

}  // namespace
}  // namespace transmamba
