// Saving checkpoints (their files: parallel/checkpoint.h), also while training goes on.
//
// A save has three parts. Values and moments are copied to host memory: only for that training stands still.
// Then every rank's own thread writes its shard, and at last a thread of rank 0 the index, which shows the
// checkpoint whole, and gives the folder its name. These threads make no calls of a Communicator: whether all
// have finished is asked at step boundaries, with what ranks tell each other there anyway.
#pragma once

#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/device.h"
#include "parallel/checkpoint.h"
#include "parallel/checkpoint_shards.h"

namespace transmamba {

class CheckpointWriter {
 public:
  /// A collective call. With where.async, and more than one save to come, it gets the host memory of a copy:
  /// as much as the shard has (12 bytes a parameter of the whole run, over all ranks, in float32). All
  /// arguments but `tokenizer` must outlive it.
  CheckpointWriter(Communicator& world, const CheckpointConfig& where, const Config& config,
                   TokenizerSource tokenizer, const ParameterStore& store, const Optimizer& optimizer);
  /// Waits for this rank's thread; what is not whole by then stays aside.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  /// A collective call: begins to save, after an earlier save has come to its end. Values must be as the last
  /// step left them (Engine::finish). Without async it ends it too. Throws Error as finish() does.
  void begin(const TrainState& state);
  /// Of a save that was begun and is not done; the same on all ranks.
  bool is_under_way() const { return phase_ != Phase::idle; }
  /// Whether this rank still works on the present part of it.
  bool is_busy();
  /// A collective call, once no rank is busy: on to the next part. Where one failed throws Error; what was
  /// there before is untouched, and the save is over.
  void advance();
  /// A collective call: waits until the checkpoint is there under its name. Throws Error as advance() does.
  void finish();
  /// Where values are still being copied, on a GPU: nothing may change them before this point. Or null.
  const gpu::Event* copied() const { return phase_ == Phase::copy ? copied_.get() : nullptr; }

 private:
  enum class Phase { idle, copy, shards, index };
  void start_shard();
  void write_index() const;
  /// Of all ranks; where it fails on one the save is over.
  void step(std::string_view what, const std::function<void()>& mine);

  Communicator& world_;
  const CheckpointConfig& where_;
  const Config& config_;
  const TokenizerSource tokenizer_;
  const ParameterStore& store_;
  const Optimizer& optimizer_;
  std::vector<std::string> shards_;  // descriptions by rank, on rank 0
  std::optional<ShardCopy> copy_;    // of async
  Stream beside_;                    // of copies, on a GPU
  std::unique_ptr<gpu::Event> taken_, copied_;
  Phase phase_ = Phase::idle;
  TrainState state_;
  std::future<void> task_;
};

/// All of it at once: writes <root>/step_<step>, each rank its own shard, and then removes all but the `keep`
/// newest (0: keeps all). All ranks see the same files. On failure throws Error; what was there before is
/// untouched.
void save_checkpoint(Communicator& world, CheckpointConfig where, const TrainState& state,
                     const Config& config, const TokenizerSource& tokenizer, const ParameterStore& store,
                     const Optimizer& optimizer);

/// Makes the folder and tries to write in it, so that a run that cannot save ends before its first step.
void prepare_checkpoints(Communicator& world, const CheckpointConfig& where);

}  // namespace transmamba
