// The training loop: data, steps, validation, checkpoints, and what it says on its way.
#pragma once

#include <optional>
#include <string>

#include "core/config.h"
#include "core/metrics.h"
#include "core/tokens.h"
#include "launch/bad_steps.h"
#include "launch/exit_codes.h"
#include "launch/fault.h"
#include "launch/folder_lock.h"
#include "launch/pace.h"
#include "launch/profiler.h"
#include "launch/saves.h"
#include "launch/session.h"
#include "launch/signals.h"
#include "launch/stall_watch.h"
#include "launch/traffic_report.h"
#include "parallel/checkpoint.h"
#include "parallel/engine.h"

namespace transmamba {

/// A GPU's memory ends a run in the middle of its first step: better before it begins. Throws Error where the
/// plan of `ranks` ranks has more than `gpu` has free, with how much and which keys lower it.
void check_memory(const Config& config, int ranks, const gpu::Info& gpu);

class Trainer {
 public:
  /// Opens the data, makes this rank's part of the model and, as checkpoint.resume asks, takes over a
  /// checkpoint. Throws Error before any training if something is wrong. `config` gets the vocabulary size of
  /// the data and the parallel degrees where it leaves them open. All ranks of `world` make a trainer, of one
  /// configuration. `signals` may be null.
  Trainer(Config config, Session& session, Communicator& world, const StopSignals* signals = nullptr);

  /// Trains to train.steps, with validation and checkpoints on the way and at the end, and a table of all
  /// communication, and where log.profile asks for it a profile. Rank 0 speaks for all. Once `signals` asks
  /// for it on any rank all finish their step, save, and give kExitStopped instead of kExitDone.
  ExitCode run();

  const Config& config() const { return config_; }
  const TrainState& state() const { return state_; }

 private:
  struct Data {
    std::unique_ptr<TokenDataset> training, validation;  // the latter may be null
  };
  void open_data();
  void resume();
  void check_fits(const Checkpoint& checkpoint) const;
  void find_peak();
  void take_over(const Checkpoint& checkpoint);
  void warn_of_later_checkpoints() const;
  void print_start();
  void report_graphs();
  void report_communication();
  bool speaks() const { return world_.rank() == 0; }
  Batch batch(const TokenDataset& data, const SampleOrder& order, std::int64_t first,
              std::int64_t count) const;
  std::int64_t validation_sequences() const;
  /// This data replica's. Read before ranks depend on each other, so that bad data fails on all.
  std::vector<Batch> validation_batches() const;
  double validate(const std::vector<Batch>& batches);
  StepResult take_step();
  void report_bad_step();
  /// Skipped steps changed nothing, so that what the last fine one left can be saved. What came of it, for
  /// the end of a run.
  std::string save_last_fine();

  Config config_;
  Session& session_;
  Communicator& world_;
  const StopSignals* signals_;
  std::unique_ptr<Profiler> profiler_;  // of a run that is profiled
  Pace pace_;                           // before all that makes calls, which may be timed by it
  Context context_;
  Data data_;
  std::optional<SampleOrder> order_;
  std::unique_ptr<FolderLock> lock_;  // rank 0's, of checkpoint.path
  std::unique_ptr<Mesh> mesh_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<MetricsLog> log_;  // rank 0's
  Fault fault_;
  BadSteps bad_steps_;
  std::unique_ptr<Saves> saves_;  // of a run with checkpoint.path
  TrafficReport traffic_;
  std::optional<Slowest> slowest_;
  TrainState state_;
  double peak_flops_ = 0;  // of all ranks
  bool peak_is_published_ = false;
  StallWatch watch_;
};

}  // namespace transmamba
