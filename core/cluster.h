// A cluster that need not be at hand, described in a JSON file (configs/clusters/): how fast its devices and
// links are and how many there are, for predictions of runs on it.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "core/machine.h"

namespace transmamba {

struct Cluster {
  static constexpr int kVersion = 1;
  std::string name;
  std::vector<std::string> sources;  ///< where the numbers are from, in words
  Machine machine;                   ///< kernels, links and ranks_per_host
  std::int64_t hosts = 1;
  double memory_bytes = 0;  ///< that a run may use on one rank's device
  double peak_flops = 0;    ///< a rank's, which MFU is counted against

  std::int64_t ranks() const { return hosts * machine.ranks_per_host; }

  /// "kernels" names what a device is like: `from` is h200 or cpu (the built-in numbers) or a machine file,
  /// relative to this one; matrix_speed and memory_speed say how much faster it does matrix products and
  /// attention, and everything else. Links are a latency in microseconds and the GB/s that a rank sends in
  /// each kind of call. Throws Error naming the file and the key where something is missing or no number.
  static Cluster load(const std::filesystem::path& file);
};

}  // namespace transmamba
