// One run a folder.
#include "launch/folder_lock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <memory>

#include "launch/host.h"
#include "tests/core/files.h"

namespace transmamba {
namespace {

using ::testing::AllOf;
using testing::error_of;
using testing::Folder;
using ::testing::HasSubstr;

TEST(FolderLock, NamesTheProcessThatHasIt) {
  const Folder folder;
  auto first = std::make_unique<FolderLock>(folder / "run");
  EXPECT_THAT(error_of([&] { FolderLock(folder / "run", 0.1); }),
              AllOf(HasSubstr("[checkpoint] checkpoint.path = " + (folder / "run").string()),
                    HasSubstr("process " + std::to_string(getpid()) + " on host " + host_name())));
  const FolderLock elsewhere(folder / "other", 0.1);
  first.reset();
  const FolderLock second(folder / "run", 0.1);
}

TEST(FolderLock, EndsWithItsProcessHoweverThatEnds) {
  const Folder folder;
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    const FolderLock lock(folder / "run");
    if (write(ready[1], "x", 1) == 1) pause();
    _exit(1);
  }
  char x = 0;
  ASSERT_EQ(read(ready[0], &x, 1), 1);
  EXPECT_THAT(error_of([&] { FolderLock(folder / "run", 0.1); }),
              HasSubstr("process " + std::to_string(child)));
  kill(child, SIGKILL);
  EXPECT_NO_THROW(FolderLock(folder / "run", 3)) << "also before it is waited for";
  waitpid(child, nullptr, 0);
}

}  // namespace
}  // namespace transmamba
