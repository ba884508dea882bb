#include "launch/stall_watch.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace transmamba {

StallWatch::StallWatch(double seconds, std::function<void(const std::string&)> ends)
    : limit_(seconds), ends_(std::move(ends)) {
  if (seconds > 0) thread_ = std::thread([this] { watch(); });
}

StallWatch::~StallWatch() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    is_over_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

/// Without a word to the thread, which looks when it wakes.
void StallWatch::begin(std::string_view what, std::int64_t step) {
  const std::lock_guard lock(mutex_);
  is_at_work_ = true, what_ = what, step_ = step, still_ = {};
}

void StallWatch::rest() {
  const std::lock_guard lock(mutex_);
  is_at_work_ = false;
}

void StallWatch::watch() {
  std::unique_lock lock(mutex_);
  const auto step = std::min(limit_ / 4, std::chrono::duration<double>(1));
  while (!changed_.wait_for(lock, step, [&] { return is_over_; })) {
    still_ += step;
    if (!is_at_work_ || still_ <= limit_) continue;  // the first tick may have begun before begin()
    ends_(fmt::format("in step {}: {} has taken {:.3g} s", step_, what_, still_.count()));
    return;
  }
}

}  // namespace transmamba
