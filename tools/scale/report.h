// Everything that a scaling experiment found, and the files that it is kept in.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/cluster.h"
#include "tools/scale/sweep.h"

namespace transmamba {

/// The fastest mesh that is predicted for a number of ranks of a described cluster.
struct CarriedOn {
  std::string size, mode;
  int ranks = 1;
  std::string impossible;  ///< why no mesh will do; the rest is then empty
  ParallelConfig mesh;
  std::int64_t global_batch = 0, seq_len = 0;
  Prediction predicted;
  double flops = 0;       ///< of the model, a step
  double efficiency = 0;  ///< to the smallest number of ranks that will do
  double mfu = 0;
  double tokens_per_second() const {
    return static_cast<double>(global_batch * seq_len) / predicted.step.total();
  }
};

struct ScaleReport {
  std::string command, date, host, processor;
  Machine machine;  ///< whose numbers the predictions beside measurements are made of
  std::vector<std::string> launcher;
  std::string data;  ///< in words
  Sweep sweep;
  std::optional<Cluster> cluster;
  std::vector<CarriedOn> carried_on;
};

/// For 1, 2, 4, .. ranks and all of the cluster. Strong scaling keeps the batch; weak scaling gives every
/// rank the batch that a rank has on `base_ranks`.
std::vector<CarriedOn> carry_on(const Cluster& cluster, const std::vector<ScaleSize>& sizes,
                                const std::vector<std::string>& modes, int base_ranks);

/// Where a run keeps its configuration, output and numbers; `folder` is that of all results.
std::filesystem::path run_folder(const std::filesystem::path& folder, const ScaleRun& run);
/// What starts a run, whose configuration is run.cfg there.
std::vector<std::string> run_command_of(const ScaleRun& run, const std::vector<std::string>& launcher,
                                        const std::filesystem::path& folder);

/// Writes scale.json and scale.html, each aside and then renamed. Throws Error.
void save_report(const std::filesystem::path& folder, const ScaleReport& report);

/// Takes from a scale.json the rounds of runs that are the same, to the last key and word. Throws Error where
/// it is no such file.
void take_over_rounds(const std::filesystem::path& json, ScaleReport& report);

/// The page (tools/scale/page.cpp).
std::string scale_page(const ScaleReport& report, const std::filesystem::path& folder);

}  // namespace transmamba
