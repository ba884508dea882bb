// Saving checkpoints (their files: parallel/checkpoint.h), also while training goes on.
//
// A save has three parts. Values and moments are copied to host memory: only for that training stands still.
// Then every rank's own thread writes its shard, and at last a thread of rank 0 the index, which shows the
// checkpoint whole, and gives the folder its name. These threads make no calls of a Communicator: whether all
// have finished, and well, is asked at step boundaries with what ranks tell each other there anyway: a save
// that goes well costs no call at all.
#pragma once

#include <exception>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "parallel/checkpoint.h"
#include "parallel/checkpoint_shards.h"

namespace transmamba {

class CheckpointWriter {
 public:
  /// A collective call, which removes what crashes left. With where.async, and more than one save to come, it
  /// gets the host memory of a copy: as much as the shard has (12 bytes a parameter of the whole run, over
  /// all ranks, in float32). All arguments but `tokenizer` must outlive it.
  CheckpointWriter(Communicator& world, const CheckpointConfig& where, const Config& config,
                   TokenizerSource tokenizer, const ParameterStore& store, const Optimizer& optimizer);
  /// Waits for this rank's thread; what is not whole by then stays aside.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  enum class Keep { newest, all };  ///< of checkpoints: where.keep of them, or this one beside all others
  /// Begins to save; a collective call where an earlier save is under way, which comes to its end first, and
  /// without async, when this one does too. Values must be as the last step left them (Engine::finish).
  /// Throws Error as finish() does.
  void begin(const TrainState& state, Keep keep = Keep::newest);
  /// Of a save that was begun and is not done; the same on all ranks.
  bool is_under_way() const { return phase_ != Phase::idle; }
  /// Whether this rank still works on the present part of it.
  bool is_busy();
  bool has_failed() const { return error_ != nullptr; }  ///< since it was last busy
  /// Once no rank is busy: on to the next part. Where `any_has_failed` it is a collective call and throws the
  /// Error of one that has; what was there before is untouched, and the save is over.
  void advance(bool any_has_failed);
  /// A collective call: waits until the checkpoint is there under its name. Throws Error as advance() does.
  void finish();
  /// Where values are still being copied, on a GPU: nothing may change them before this point. Or null.
  const gpu::Event* copied() const { return phase_ == Phase::copy ? copied_.get() : nullptr; }

 private:
  enum class Phase { idle, copy, shards, index };
  void start_shard();
  void together(const std::function<void()>& mine);
  void make_folder() const;
  void start(const std::function<void()>& task);
  void end_task();
  void write_index() const;

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
  Keep keep_ = Keep::newest;
  std::future<void> task_;
  std::exception_ptr error_;  // of the last task
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
