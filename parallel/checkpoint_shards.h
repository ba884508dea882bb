// The files of a checkpoint: what each rank writes, and the index that shows all of it as whole tensors. For
// parallel/checkpoint.cpp only, which knows about folders.
#pragma once

#include <array>
#include <filesystem>
#include <string>
#include <vector>

#include "core/hdf5_file.h"
#include "core/shard_boxes.h"
#include "parallel/optimizer.h"

namespace transmamba {

/// Of parameters and of their two moments.
inline constexpr std::array<const char*, 3> kCheckpointGroups = {"params/", "optimizer/m/", "optimizer/v/"};

/// Which of how many, and of which step: what a shard says of itself, so that it is not taken for another.
struct ShardLabel {
  int rank = 0, ranks = 1;
  std::int64_t step = 0;
};
std::string shard_name(int rank);  ///< "shard_00003.h5"

/// What a shard is made of, in host memory of its own.
class ShardCopy {
 public:
  /// Gets the memory; the first steps to come should not have to wait for that.
  ShardCopy(const ParameterStore& store, const Optimizer& optimizer);
  /// Copies what is there now, in the order of `stream`, of the store's device.
  void take(const Stream& stream) const;
  View at(std::size_t group, std::size_t owned) const { return copies_[group][owned]; }

 private:
  const Optimizer& optimizer_;
  Allocator memory_;
  std::array<std::vector<Tensor>, kCheckpointGroups.size()> copies_;  // of owned runs, absent where not saved
};

/// Writes, syncs and closes the shard of a rank: the values and moments that it owns and that are no copies.
/// `copy`: from there, on any thread.
void write_shard(const std::filesystem::path& folder, const ShardLabel& label, const ParameterStore& store,
                 const Optimizer& optimizer, const ShardCopy* copy = nullptr);
/// Throws Error naming the file where it is missing, truncated or another than the label says.
void check_shard(const std::filesystem::path& folder, const ShardLabel& label);

/// What write_shard() has written, in words for write_tensors() on another rank.
std::string describe_shard(const ParameterStore& store, const Optimizer& optimizer);
/// Every tensor at its global shape, from the descriptions of all shards.
void write_tensors(Hdf5File& index, DType dtype, const std::vector<std::string>& descriptions);

/// What the groups hold of a run that this rank owns, 1-D.
inline std::array<View, 3> optimizer_views(const Optimizer& optimizer, const OwnedRun& run) {
  return {optimizer.weights(run), optimizer.m(run), optimizer.v(run)};
}

/// Elements of a flat run of values, from `first` on, as a box.
View box_view(const View& flat, std::int64_t first, const Shape& extent);

}  // namespace transmamba
