// What a run says while it goes: a line for people, a JSON object for programs.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace transmamba {

/// One training step; rates are this step's.
struct StepMetrics {
  std::int64_t step = 0, steps = 0;  ///< counted from 1
  double loss = 0;                   ///< mean over the step's tokens, nats
  double grad_norm = 0;              ///< before clipping
  double lr = 0;
  double tokens_per_second = 0;
  double peak_fraction = 0;         ///< model FLOPs a second over the machine's peak
  bool is_mfu = false;              ///< that peak is the published one, else what products reached here
  std::int64_t memory_bytes = 0;    ///< largest sum of tensors so far
  std::int64_t resident_bytes = 0;  ///< largest resident memory of the process so far
  std::int64_t skipped = 0;         ///< steps so far that changed nothing: not finite, or spikes
  double stall_seconds = 0;         ///< that training stood still for checkpoints since the last step
  int slowest_rank = 0;             ///< of the ranks' own work, and how much longer than that of the others
  double slowest_excess = 0;        ///< it takes: 0.5 for half more
  double seconds_left = 0;
};

/// Whether a step's line is one that stays, of a run of `steps`.
inline bool is_line_due(std::int64_t step, std::int64_t every, std::int64_t steps) {
  return step % every == 0 || step == steps || step == 1;
}

std::string format_bytes(std::int64_t bytes);   ///< "312 MiB"
std::string format_duration(double seconds);    ///< "2m10s"
std::string format_line(const StepMetrics& m);  ///< for people

/// A line every `every` steps; on a terminal also a live line, rewritten at each step.
class MetricsLog {
 public:
  /// `jsonl` may be empty: no file. Lines in it past `resumed_step` are of a run that this one replaces and
  /// are cut off; with resumed_step 0 the file starts anew. Throws Error if the file cannot be written, and
  /// so does the first line of a new one. Where that is so later, as on a full disk, one warning says it, and
  /// lines are missing until it can be again: no part of a line stays, and nothing throws. `alone`: not one
  /// of several ranks, whose launcher makes any stdout look like a terminal.
  MetricsLog(std::filesystem::path jsonl, std::int64_t resumed_step, std::int64_t every, bool alone = true);
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;

  void step(const StepMetrics& m);
  void validation(std::int64_t step, double loss);
  /// A line that stays, also on a terminal.
  void note(const std::string& text);
  void warn(const std::string& text);  ///< the same on stderr

 private:
  void write(const std::string& json);
  bool append(const std::string& line);
  std::filesystem::path path_;
  int file_ = -1;
  std::int64_t end_ = 0;  // of the last whole line
  std::int64_t every_;
  bool terminal_, is_new_;  // without a line yet
  bool live_ = false, torn_ = false, has_warned_ = false;
};

}  // namespace transmamba
