// Measures some steps of a run: when it begins, what of all ranks is put together, and where it is written.
#pragma once

#include <filesystem>

#include "core/config.h"
#include "core/metrics.h"
#include "launch/rank_profile.h"
#include "parallel/comm/communicator.h"

namespace transmamba {

class Profiler {
 public:
  /// For log.profile steps of `world`, a rank of which computes on `compute`. `config` must outlive it.
  Profiler(const Config& config, Communicator& world, const Stream& compute);
  ~Profiler();
  Profiler(const Profiler&) = delete;
  Profiler& operator=(const Profiler&) = delete;
  Profile* profile() { return &profile_; }  ///< for the Context of what is to be measured

  /// A collective call, before step `now` (from 0) of this run: finds which steps to measure, and whether
  /// what is measured can be written. `log`: rank 0's.
  void plan(std::int64_t now, MetricsLog* log);
  // Around a step; the first is a collective call, true where the step is measured.
  bool begin_step(std::int64_t step);
  void end_step() { profile_.pause(); }
  /// Whether all are measured and over: after the step that follows them, for the last one leaves values to
  /// be gathered beside it, or at the end of the run.
  bool is_due() const { return first_ >= 0 && next_ == first_ + config_.log.profile; }
  /// A collective call, then: prints and writes.
  void report();

 private:
  std::filesystem::path folder() const;
  const Config& config_;
  Communicator& world_;
  Profile profile_;
  MetricsLog* log_ = nullptr;
  std::int64_t first_ = -1, next_ = 0;  // of the steps to measure
  ClockOffset early_;
  double origin_ = 0;  // on rank 0's clock
};

}  // namespace transmamba
