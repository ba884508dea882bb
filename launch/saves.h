// Checkpoints of a run: begun at a step, written while training goes on, told when they are there.
#pragma once

#include <chrono>
#include <memory>

#include "core/metrics.h"
#include "launch/fault.h"
#include "parallel/checkpoint_writer.h"
#include "parallel/engine.h"

namespace transmamba {

class Saves {
 public:
  /// `log` is rank 0's, null elsewhere. A collective call, as begin(), move_on() and finish().
  Saves(Communicator& world, const Config& config, TokenizerSource tokenizer, const ParameterStore& store,
        const Optimizer& optimizer, const Fault& fault, MetricsLog* log)
      : world_(world),
        config_(config),
        fault_(fault),
        log_(log),
        writer_(world, config.checkpoint, config, std::move(tokenizer), store, optimizer) {}

  /// What cannot be saved costs a warning, for there will be another time; the last save throws Error.
  void begin(const TrainState& state, bool is_last);
  /// Of a run that is about to fail: all of it, and beside what is there already, whatever checkpoint.keep
  /// says. Throws Error.
  void save_beside(const TrainState& state);
  /// At the end of a step, which told all ranks of each other's flags.
  void move_on(const StepFlags& flags);
  /// What is under way comes to its end.
  void finish();

  bool is_busy() { return writer_.is_busy(); }
  bool has_failed() const { return writer_.has_failed(); }
  const gpu::Event* copied() const { return writer_.copied(); }
  double take_stall() {
    return std::exchange(stall_, 0);
  }  ///< seconds that training stood still since the last

 private:
  using Clock = std::chrono::steady_clock;
  template <class Part>
  void attempt(bool is_last, const Part& part);
  void begin(const TrainState& state, bool is_last, CheckpointWriter::Keep keep);
  Communicator& world_;
  const Config& config_;
  const Fault& fault_;
  MetricsLog* log_;
  CheckpointWriter writer_;
  Clock::time_point began_;
  std::int64_t step_ = 0;
  double stall_ = 0, stall_of_save_ = 0;
};

}  // namespace transmamba
