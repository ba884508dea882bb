#include "launch/child_process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>

#include "tests/core/files.h"

namespace transmamba {
namespace {

using testing::error_of;
using testing::Folder;
using ::testing::HasSubstr;
using testing::slurp;
using testing::spill;

ChildResult shell(const Folder& folder, const std::string& script, double seconds = 30) {
  return run_child({"sh", "-c", script}, folder / "out", folder / "err", seconds);
}

TEST(ChildProcess, KeepsWhatAProgramSays) {
  const Folder folder;
  const ChildResult result = shell(folder, "echo said; echo complained >&2");
  EXPECT_TRUE(result.ok);
  EXPECT_EQ(slurp(folder / "out"), "said\n");
  EXPECT_EQ(slurp(folder / "err"), "complained\n");
}

TEST(ChildProcess, SaysHowOneEnded) {
  const Folder folder;
  EXPECT_EQ(shell(folder, "exit 3").ending, "exit code 3");
  const ChildResult killed = shell(folder, "kill -9 $$");
  EXPECT_FALSE(killed.ok);
  EXPECT_THAT(killed.ending, HasSubstr("signal 9"));
}

TEST(ChildProcess, EndsOneThatTakesTooLong) {
  const Folder folder;
  const auto start = std::chrono::steady_clock::now();
  const ChildResult result = shell(folder, "exec sleep 60", 0.3);
  EXPECT_FALSE(result.ok);
  EXPECT_THAT(result.ending, HasSubstr("stopped after"));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST(ChildProcess, LooksForProgramsAsAShellDoes) {
  const Folder folder;
  EXPECT_EQ(find_program("sh").filename(), "sh");
  EXPECT_TRUE(find_program("no-such-program").empty());
  EXPECT_TRUE(find_program("/tmp").empty());
  EXPECT_THAT(error_of([&] { run_child({"no-such-program"}, folder / "o", folder / "e", 1); }),
              HasSubstr("no-such-program"));
  EXPECT_THAT(error_of([&] { run_child({"sh"}, "/nowhere/o", folder / "e", 1); }), HasSubstr("/nowhere/o"));
}

TEST(ChildProcess, TakesOurOwnErrorBeforeWhatTheLauncherAdds) {
  const Folder folder;
  spill(folder / "err", "transmamba: rank 1: [data] broken\n-----\nmpirun says goodbye\n-----\n");
  EXPECT_EQ(last_error(folder / "err"), "rank 1: [data] broken");
  spill(folder / "err", "----\nmpirun could not start anything\n-----\n\n");
  EXPECT_EQ(last_error(folder / "err"), "mpirun could not start anything");
  spill(folder / "err", "");
  EXPECT_EQ(last_error(folder / "err"), "");
}

}  // namespace
}  // namespace transmamba
