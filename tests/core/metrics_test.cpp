// What a run says while it goes, where that cannot be written.
#include "core/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fcntl.h>
#include <stdio_ext.h>

#include <algorithm>
#include <csignal>

#include "tests/core/files.h"

namespace transmamba {
namespace {

using ::testing::AllOf;
using testing::error_of;
using testing::FileLimit;
using testing::Folder;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::MatchesRegex;
using testing::slurp;

/// Not one whose line is due.
StepMetrics step(std::int64_t number) { return {.step = number, .steps = 1000}; }
constexpr std::int64_t kEvery = 1000;

/// What f() writes to stderr.
template <class F>
std::string errors_of(F&& f) {
  ::testing::internal::CaptureStderr();
  f();
  return ::testing::internal::GetCapturedStderr();
}

/// A stream of ours goes to a full disk while it lives.
class FullDisk {
 public:
  explicit FullDisk(std::FILE* stream) : stream_(stream) {
    std::fflush(stream_);
    before_ = dup(fileno(stream_));
    const int full = open("/dev/full", O_WRONLY);
    dup2(full, fileno(stream_)), close(full);
  }
  ~FullDisk() {
    __fpurge(stream_), std::clearerr(stream_);
    dup2(before_, fileno(stream_)), close(before_);
  }

 private:
  std::FILE* stream_;
  int before_;
};

TEST(MetricsLog, GoesOnWithoutLinesForWhichThereIsNoRoom) {
  std::signal(SIGXFSZ, SIG_IGN);
  const Folder folder;
  const std::filesystem::path file = folder / "m.jsonl";
  MetricsLog log(file, 0, kEvery, false);
  log.step(step(2));
  const std::string first = slurp(file);
  EXPECT_THAT(first, AllOf(HasSubstr("\"step\":2,"), HasSubstr("}\n")));
  std::string said;
  {
    const FileLimit limit(first.size() + first.size() / 2);  // in the middle of the next line
    said = errors_of([&] { log.step(step(3)), log.step(step(4)); });
  }
  EXPECT_EQ(slurp(file), first);
  EXPECT_THAT(said, AllOf(HasSubstr("warning: " + file.string() + ": cannot write: File too large"),
                          HasSubstr("training goes on")));
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
  EXPECT_THAT(errors_of([&] { log.step(step(5)); }), IsEmpty());  // there is room again
  const std::string all = slurp(file);
  EXPECT_TRUE(all.starts_with(first + "{\"step\":5,") && all.ends_with("}\n")) << all;
  EXPECT_EQ(std::count(all.begin(), all.end(), '\n'), 2) << all;
}

TEST(MetricsLog, EndsARunWhoseDiskIsFullFromTheFirstLineOn) {
  MetricsLog log("/dev/full", 0, kEvery, false);
  EXPECT_THAT(error_of([&] { log.step(step(2)); }), HasSubstr("[metrics] /dev/full: cannot write: No space"));
}

TEST(MetricsLog, GoesOnWhereItsOwnOutputIsOnAFullDisk) {
  MetricsLog log("", 0, kEvery, false);
  for (std::FILE* stream : {stdout, stderr}) {
    const FullDisk full(stream);
    for (int line = 0; line < 100; ++line)  // more than a buffer has room for
      EXPECT_NO_THROW(stream == stdout ? log.note(std::string(200, 'x')) : log.warn("x"));
  }
}

TEST(MetricsLog, IsRefusedAtTheStartWhereItsFileCannotBeWritten) {
  const Folder folder;
  EXPECT_THAT(error_of([&] { MetricsLog(folder.path(), 0, kEvery, false); }),
              AllOf(HasSubstr(folder.path().string()), HasSubstr("cannot write: Is a directory")));
}

}  // namespace
}  // namespace transmamba
