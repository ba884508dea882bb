#include "launch/fault.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <fstream>
#include <thread>

namespace transmamba {
namespace {

void limit_files(rlim_t bytes) {
  rlimit limit{};
  getrlimit(RLIMIT_FSIZE, &limit);
  limit.rlim_cur = std::min(bytes, limit.rlim_max);
  setrlimit(RLIMIT_FSIZE, &limit);
}

}  // namespace

void Fault::begin_step(std::int64_t step) {
  if (is("kill", step)) kill(getpid(), SIGKILL);
  if (is("stop", step)) kill(getpid(), SIGSTOP);
  while (is("hang", step)) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  if (is("slow", step)) std::this_thread::sleep_for(std::chrono::duration<double>(config_.seconds));
  if (is("disk_full", step) != is_limited_) {
    is_limited_ = !is_limited_;
    limit_files(is_limited_ ? 16384 : RLIM_INFINITY);
  }
}

void Fault::saved(const std::filesystem::path& shard, std::int64_t step) const {
  if (!is("flipped_byte", step)) return;
  std::fstream file(shard, std::ios::in | std::ios::out | std::ios::binary);
  const auto middle = static_cast<std::streamoff>(std::filesystem::file_size(shard) / 2);
  file.seekg(middle);
  const int byte = file.get();
  file.seekp(middle);
  file.put(static_cast<char>(byte ^ 0x10));
}

}  // namespace transmamba
