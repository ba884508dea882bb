// Steps whose loss or gradient is not finite, or whose loss is a spike: they change nothing, and too many in
// a row end a run.
#pragma once

#include <string>

#include "core/config.h"
#include "parallel/engine.h"

namespace transmamba {

class BadSteps {
 public:
  explicit BadSteps(const TrainConfig& config) : config_(config) {}

  /// Above this a loss is a spike: train.spike_guard times the mean of recent steps, of which it wants some.
  double largest_loss() const;
  /// Step `step`, counted from 1, has ended so.
  void add(std::int64_t step, const StepResult& result);
  bool too_many() const { return in_a_row_ > config_.max_skipped; }
  std::int64_t skipped() const { return skipped_; }  ///< in all
  /// The last that changed anything; 0 for none of this run.
  std::int64_t fine_step() const { return fine_step_; }

  /// Of the last step, which was skipped. `by_rank`: what was not finite; "" for nothing.
  std::string why(const std::string& by_rank) const;
  /// What was fine before, for the end of a run.
  std::string last_fine() const;

 private:
  const TrainConfig& config_;
  std::int64_t in_a_row_ = 0, skipped_ = 0, fine_ = 0;
  double mean_ = 0;  // of losses
  std::int64_t step_ = 0, fine_step_ = 0;
  StepResult last_, last_fine_;
};

}  // namespace transmamba
