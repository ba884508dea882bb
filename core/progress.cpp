#include "core/progress.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>

#include "core/metrics.h"

namespace transmamba {

Progress::Progress(std::string name, std::int64_t total)
    : name_(std::move(name)), total_(total), terminal_(::isatty(STDERR_FILENO) == 1) {}

void Progress::update(std::int64_t done) {
  const auto now = Clock::now();
  if (std::chrono::duration<double>(now - shown_).count() < (terminal_ ? 0.2 : 10.0)) return;
  shown_ = now;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double rate = std::max(1.0, static_cast<double>(done) / std::max(seconds, 1e-3));
  const double part = std::min(1.0, static_cast<double>(done) / static_cast<double>(total_));
  const std::string numbers = fmt::format(
      "{:3.0f}%  {} of {}  {:.1f} MB/s  {} left", 100 * part, format_bytes(done), format_bytes(total_),
      rate / 1e6, format_duration(static_cast<double>(std::max<std::int64_t>(0, total_ - done)) / rate));
  if (terminal_) {
    const auto width = static_cast<std::size_t>(30 * part);
    fmt::print(stderr, "\r{} [{}{}] {}\x1b[K", name_, std::string(width, '#'), std::string(30 - width, '.'),
               numbers);
    drawn_ = true;
  } else {
    fmt::print(stderr, "{}: {}\n", name_, numbers);
  }
  std::fflush(stderr);
}

void Progress::clear() {
  if (drawn_) fmt::print(stderr, "\r\x1b[K");
  drawn_ = false;
}

}  // namespace transmamba
