// Ends a process that no longer gets on where no call of a Communicator looks at the time: in its files, in
// its data, in a computation. Where others wait for it they say so long before, with where each is
// (roll_call.h); where it is alone, or all stand still at once, as they do when a file system goes, nobody
// else would.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

namespace transmamba {

class StallWatch {
 public:
  /// `seconds` without begin(), from the first on, call `ends` once with what stands still; 0: never. In a
  /// thread of its own, beside whatever does not come back: it is to say so and end the process. While the
  /// process itself is stopped, as SLURM does to one that it suspends, no time passes.
  StallWatch(double seconds, std::function<void(const std::string&)> ends);
  ~StallWatch();
  StallWatch(const StallWatch&) = delete;
  StallWatch& operator=(const StallWatch&) = delete;

  /// What this process does next, and in which step; `what` is a literal. Cheap enough for every micro-batch.
  void begin(std::string_view what, std::int64_t step);
  /// Nothing that has to get on.
  void rest();

 private:
  void watch();
  const std::chrono::duration<double> limit_;
  const std::function<void(const std::string&)> ends_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_over_ = false, is_at_work_ = false;
  std::chrono::duration<double> still_{};  // as the thread saw it
  std::string_view what_;
  std::int64_t step_ = 0;
  std::thread thread_;  // last: it reads the rest
};

}  // namespace transmamba
