// Checkpoints: a folder a step, in HDF5, readable by any HDF5 tool and under any mesh. What writes them:
// parallel/checkpoint_writer.h.
//
//   <root>/step_00000100/index.h5        every tensor at its global shape: virtual datasets over the shards
//   <root>/step_00000100/index.cksum     what `cksum index.h5` prints there; checked where it is present
//   <root>/step_00000100/shard_00003.h5  what rank 3 owns, each chunk with its own checksum
//
// Datasets of the index: params/<name>, optimizer/m/<name>, optimizer/v/<name>, with the reference's
// parameter names, of type float32 or float64: for a run in bfloat16 its master weights. Attributes of the
// index: format_version, step, consumed_sequences, seed, rng, config (INI), tokenizer, shards; a dataset
// tokenizer_model where the tokenizer has one.
//
// Datasets of a shard: those of the parameters of which the rank owns elements that count (no copies). Where
// that is all of its slice, the dataset has the name that it has in the index; else the elements are
// <that name>/0, <that name>/1, ..: boxes of the tensor (core/shard_boxes.h), in order. Attributes: step,
// shard, shards (this one's number, and how many), without which a shard could be taken for another.
//
// A checkpoint is written aside, synced and renamed: under its final name it is whole. A crash while writing
// leaves a folder ending in .partial, which the next save removes. Checkpoints of later steps than the one
// being saved are of a run that this one replaces, or damaged: saving sets them aside as step_<step>.old,
// which nothing here reads or removes.
//
// Functions that take `world` are collective calls. What fails on one rank fails on all, with the same Error.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/hdf5_file.h"
#include "core/parameter.h"
#include "parallel/comm/communicator.h"
#include "parallel/optimizer.h"

namespace transmamba {

/// Where a run stands. Every random choice is a function of the seed and these counters (core/random.h), so
/// they are also the state of the random number generator.
struct TrainState {
  std::int64_t step = 0;                ///< optimizer steps taken
  std::int64_t consumed_sequences = 0;  ///< training samples read: the data position
};

/// What makes the tokenizer again: the arguments of make_tokenizer(). Empty where the data did not say.
struct TokenizerSource {
  std::string name, model;
};

class Checkpoint {
 public:
  /// Opens one checkpoint folder. Throws Error if it is not whole: no index, a shard missing, truncated or
  /// foreign. Of the shards it looks at numbers `rank`, `rank` + `ranks`, ..: ranks share that work.
  explicit Checkpoint(const std::filesystem::path& folder, int rank = 0, int ranks = 1);

  const std::filesystem::path& folder() const { return folder_; }
  const TrainState& state() const { return state_; }
  const Config& config() const { return config_; }  ///< of the run that wrote it
  const TokenizerSource& tokenizer() const { return tokenizer_; }

  /// Reads this rank's whole slices, and the master weights and moments that it owns, whatever mesh and type
  /// wrote them. Throws Error naming the first tensor that is missing or has another shape, or the file that
  /// is missing or damaged.
  void load_parameters(const ParameterStore& store) const;
  void load_optimizer(const ParameterStore& store, const Optimizer& optimizer) const;

 private:
  void read(const std::string& name, const ParameterStore& store, const Parameter& p, const Shape& offset,
            const View& out) const;
  std::filesystem::path folder_;
  Hdf5File index_;
  TrainState state_;
  Config config_;
  TokenizerSource tokenizer_;
};

Checkpoint open_checkpoint(Communicator& world, const std::filesystem::path& folder);
/// Parameters and moments. On failure they are undefined.
void load_checkpoint(Communicator& world, const Checkpoint& checkpoint, const ParameterStore& store,
                     const Optimizer& optimizer);

/// Throws Error naming each key in which the two models differ. TransPoints, the gate and the converter do
/// not change what parameters mean, so they may differ.
void check_same_model(const ModelConfig& saved, const ModelConfig& current, const std::string& where);

/// Checkpoint folders below `root` of steps after `after`, newest first. Partial ones are not among them.
std::vector<std::filesystem::path> list_checkpoints(const std::filesystem::path& root,
                                                    std::int64_t after = -1);
/// As rank 0 sees them, so that all ranks choose the same one.
std::vector<std::filesystem::path> list_checkpoints(Communicator& world, const std::filesystem::path& root,
                                                    std::int64_t after = -1);

}  // namespace transmamba
