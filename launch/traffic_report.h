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

/// What all ranks did in a step, on average.
struct TrafficSummary {
  int ranks = 0;
  std::int64_t steps = 0;
  double seconds_per_step = 0;     ///< mean over ranks, with waits after a step for what it left under way
  std::vector<TrafficLine> lines;  ///< those with most exposed time first
};

/// Adds up a rank's traffic while it trains, by the host's clock. Steps that are profiled are left out: a
/// profile (launch/profile_report.h) says more of them.
class TrafficReport {
 public:
  explicit TrafficReport(Communicator& world) : world_(world) { restart(); }
  void restart() { world_.recorder().reset(); }  ///< what was said since the last step does not count
  void add_step(double seconds);
  void leave_out_step();
  /// Between steps, the rank has waited for what the last one had left under way. As many steps' rests count
  /// as steps do: what the next step waits for, or this; where a step before was left out, not both.
  void add_rest(double seconds);

  TrafficSummary summary() const;  ///< a collective call

 private:
  void add(double seconds);

  Communicator& world_;
  std::map<Recorder::Key, Traffic> traffic_;
  std::int64_t steps_ = 0, rests_ = 0;
  double seconds_ = 0;
  bool leaves_ = false;  // a step was made, and nothing has waited for what it left
};

/// A halo is a few hundred bytes, a model's gradients are gigabytes.
std::string format_sent(double bytes);
std::string format_table(const TrafficSummary& summary);
/// Throws Error where it cannot be written.
void write_json(const std::filesystem::path& path, const TrafficSummary& summary);

}  // namespace transmamba
