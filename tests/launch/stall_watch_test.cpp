// Who is ended for standing still, and who is not.
#include "launch/stall_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>

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

TEST(StallWatch, DoesNotCountTheTimeThatItsProcessWasStopped) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    StallWatch watch(0.6, [](const std::string&) { _exit(3); });
    watch.begin("a micro-batch", 1);
    for (int i = 0; i < 3; ++i) std::this_thread::sleep_for(100ms);  // stopped in one of them
    _exit(0);
  }
  std::this_thread::sleep_for(50ms);
  kill(child, SIGSTOP);
  std::this_thread::sleep_for(1s);
  kill(child, SIGCONT);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace transmamba
