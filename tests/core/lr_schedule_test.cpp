#include "core/lr_schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "kernels/check.h"

namespace transmamba {
namespace {

OptimizerConfig optimizer(std::int64_t warmup) {
  OptimizerConfig config;
  config.lr = 1e-2;
  config.min_lr = 1e-3;
  config.warmup_steps = warmup;
  return config;
}

TEST(LearningRate, WarmsUpLinearlyAndReachesTheLargestAtTheEndOfWarmUp) {
  for (int step = 0; step < 4; ++step)
    EXPECT_DOUBLE_EQ(learning_rate(optimizer(4), 20, step), 1e-2 * (step + 1) / 4);
  EXPECT_DOUBLE_EQ(learning_rate(optimizer(4), 20, 4), 1e-2);
}

TEST(LearningRate, FallsAsACosineToTheSmallestAtTheLastStep) {
  EXPECT_DOUBLE_EQ(learning_rate(optimizer(2), 13, 7), 5.5e-3);  // half of the way
  EXPECT_DOUBLE_EQ(learning_rate(optimizer(2), 13, 4),
                   1e-3 + 0.5 * 9e-3 * (1 + std::cos(std::numbers::pi * 0.2)));
  EXPECT_DOUBLE_EQ(learning_rate(optimizer(2), 13, 12), 1e-3);
  for (int step = 3; step < 13; ++step)
    EXPECT_LT(learning_rate(optimizer(2), 13, step), learning_rate(optimizer(2), 13, step - 1));
}

TEST(LearningRate, StaysAtTheSmallestPastTheLastStep) {
  EXPECT_DOUBLE_EQ(learning_rate(optimizer(2), 13, 100), 1e-3);
}

TEST(LearningRate, StartsAtTheLargestWithoutWarmUp) {
  EXPECT_DOUBLE_EQ(learning_rate(optimizer(0), 10, 0), 1e-2);
  EXPECT_DOUBLE_EQ(learning_rate(optimizer(0), 1, 0), 1e-2);
}

TEST(LearningRate, MayWarmUpForTheWholeRun) { EXPECT_DOUBLE_EQ(learning_rate(optimizer(5), 5, 4), 1e-2); }

TEST(LearningRate, RejectsANegativeStep) { EXPECT_THROW(learning_rate(optimizer(2), 10, -1), Error); }

}  // namespace
}  // namespace transmamba
