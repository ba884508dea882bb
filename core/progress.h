// A progress bar for work whose size is known.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace transmamba {

/// On a terminal (stderr) one line that is drawn again; elsewhere a line every ten seconds.
class Progress {
 public:
  /// `total` bytes of work called `name`.
  Progress(std::string name, std::int64_t total);
  ~Progress() { clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(std::int64_t done);
  void clear();  ///< wipes the line, so that others can be printed

 private:
  using Clock = std::chrono::steady_clock;
  std::string name_;
  std::int64_t total_;
  bool terminal_, drawn_ = false;
  Clock::time_point start_ = Clock::now(), shown_ = start_;
};

}  // namespace transmamba
