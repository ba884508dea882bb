#include "launch/folder_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "kernels/check.h"
#include "launch/host.h"

namespace transmamba {
namespace {

std::string who() {
  char when[64] = "";
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  std::strftime(when, sizeof when, "%F %T", localtime_r(&now, &local));
  const char* const job = std::getenv("SLURM_JOB_ID");
  return fmt::format("process {} on host {}{}, since {}", getpid(), host_name(),
                     job ? fmt::format(", SLURM job {}", job) : "", when);
}

std::string text_of(int file) {
  char text[512] = "";
  const ssize_t size = pread(file, text, sizeof text - 1, 0);
  return size > 0 ? std::string(text, static_cast<std::size_t>(size)) : "another process";
}

}  // namespace

FolderLock::FolderLock(const std::filesystem::path& folder, double patience_seconds) {
  using Clock = std::chrono::steady_clock;
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  const std::filesystem::path path = folder / "lock";
  file_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  const int reason = errno;
  check(file_ >= 0, "checkpoint", "checkpoint.path = {}: cannot be written to: {}", folder.string(),
        error ? error.message() : std::strerror(reason));
  const auto start = Clock::now();
  while (flock(file_, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EINTR) continue;
    if (errno != EWOULDBLOCK) {
      fmt::print(stderr, "warning: {}: cannot be locked against other runs: {}\n", path.string(),
                 std::strerror(errno));
      return;
    }
    if (std::chrono::duration<double>(Clock::now() - start).count() > patience_seconds) {
      const std::string other = text_of(file_);
      close(std::exchange(file_, -1));
      fail("checkpoint",
           "checkpoint.path = {}: expected no other run there, but {} has it; end that run or choose another "
           "folder",
           folder.string(), other);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  const std::string text = who();
  const bool is_written = ftruncate(file_, 0) == 0 &&
                          pwrite(file_, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size());
  (void)is_written;  // a full disk: the lock holds all the same, and saving will say it
}

FolderLock::~FolderLock() {
  if (file_ >= 0) close(file_);
}

}  // namespace transmamba
