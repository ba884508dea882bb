// Signals that ask a run to stop.
#include "launch/signals.h"

#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <thread>

#include "launch/exit_codes.h"

namespace transmamba {
namespace {

TEST(StopSignals, AreRememberedWhileItLives) {
  for (const int number : {SIGTERM, SIGINT, SIGUSR1}) {
    const StopSignals signals;
    EXPECT_FALSE(signals.requested());
    std::raise(number);
    EXPECT_TRUE(signals.requested());
    EXPECT_EQ(signals.number(), number);
    std::raise(SIGTERM);  // at once: what a launcher and a process group pass on
    EXPECT_EQ(signals.number(), number);
  }
  EXPECT_EXIT(std::raise(SIGTERM), ::testing::KilledBySignal(SIGTERM), "") << "what was there before is back";
}

TEST(StopSignals, ASecondOneEndsTheProcessAtOnce) {
  const auto twice = [] {
    const StopSignals signals;
    std::raise(SIGUSR1);
    std::this_thread::sleep_for(std::chrono::milliseconds(600));
    std::raise(SIGINT);
    std::this_thread::sleep_for(std::chrono::seconds(60));
  };
  EXPECT_EXIT(twice(), ::testing::ExitedWithCode(kExitSignal + SIGINT), "");
}

TEST(StopSignals, CountThoseThatAreNotTogether) {
  const StopSignals signals(StopSignals::Second::counts);
  EXPECT_EQ(signals.count(), 0);
  for (const int wanted : {1, 2}) {
    for (const int number : {SIGINT, SIGTERM, SIGUSR1}) std::raise(number);
    EXPECT_EQ(signals.count(), wanted);
    if (wanted == 1) std::this_thread::sleep_for(std::chrono::milliseconds(550));
  }
  EXPECT_EQ(signals.number(), SIGINT);
}

TEST(StopSignals, CanBeIgnoredUntilTheEnd) {
  const auto ignored = [] {
    {
      StopSignals signals;
      std::raise(SIGTERM);
      signals.ignore();
    }
    for (const int number : {SIGTERM, SIGINT, SIGUSR1}) std::raise(number);
    std::exit(kExitStopped);
  };
  EXPECT_EXIT(ignored(), ::testing::ExitedWithCode(kExitStopped), "");
}

}  // namespace
}  // namespace transmamba
