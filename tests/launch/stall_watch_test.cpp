// Who is ended for standing still, and who is not.
#include "launch/stall_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

namespace transmamba {
namespace {

using namespace std::chrono_literals;
using ::testing::MatchesRegex;

struct Ends {
  std::atomic<int> count = 0;
  std::string text;
  std::function<void(const std::string&)> hear() {
    return [this](const std::string& said) { text = said, ++count; };
  }
  void wait() const {
    for (int i = 0; i < 1000 && count == 0; ++i) std::this_thread::sleep_for(10ms);
  }
};

TEST(StallWatch, EndsWhatDoesNotComeBackOnce) {
  Ends ends;
  {
    StallWatch watch(0.2, ends.hear());
    watch.begin("a micro-batch", 7);
    ends.wait();
    std::this_thread::sleep_for(300ms);
  }
  EXPECT_EQ(ends.count, 1);
  EXPECT_THAT(ends.text, MatchesRegex("in step 7: a micro-batch has taken 0\\.[23][0-9]* s"));
}

TEST(StallWatch, LeavesAloneWhatGetsOnRestsOrHasNotBegun) {
  Ends ends;
  StallWatch watch(0.5, ends.hear()), none(0, ends.hear());
  none.begin("a micro-batch", 1);
  std::this_thread::sleep_for(600ms);
  for (int i = 0; i < 10; ++i) watch.begin("a micro-batch", i), std::this_thread::sleep_for(100ms);
  watch.rest();
  std::this_thread::sleep_for(700ms);
  EXPECT_EQ(ends.count, 0);
}

}  // namespace
}  // namespace transmamba
