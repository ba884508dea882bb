// What ranks said to each other in a run: for people as a table, for programs as JSON.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "parallel/comm/communicator.h"

namespace transmamba {

/// One axis and purpose: means over ranks of a step's numbers.
struct TrafficLine {
  std::string axis, purpose;
  double calls = 0, bytes = 0;      ///< a rank and step
  double seconds = 0, exposed = 0;  ///< a rank and step: under way, and waited for
  double longest_exposed = 0;       ///< of the rank that waited longest
};

/// Adds up a rank's traffic while it trains.
class TrafficReport {
 public:
  explicit TrafficReport(Communicator& world) : world_(world) { restart(); }
  void restart() { world_.recorder().reset(); }  ///< what was said since the last step does not count
  void add_step(double seconds);

  /// A collective call: the lines of all ranks together, those with most exposed time first.
  std::vector<TrafficLine> lines() const;
  double seconds_per_step() const { return steps_ > 0 ? seconds_ / static_cast<double>(steps_) : 0; }
  std::int64_t steps() const { return steps_; }

 private:
  Communicator& world_;
  std::map<Recorder::Key, Traffic> traffic_;
  std::int64_t steps_ = 0;
  double seconds_ = 0;
};

std::string format_table(const std::vector<TrafficLine>& lines, double seconds_per_step);
/// Throws Error where it cannot be written.
void write_json(const std::filesystem::path& path, const std::vector<TrafficLine>& lines,
                double seconds_per_step, std::int64_t steps, int ranks);

}  // namespace transmamba
