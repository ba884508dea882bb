// What `transmamba scale` was asked for.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "core/config.h"

namespace transmamba {

/// One way to share the work as ranks are added: `axis` takes them all, or a mesh of given degrees to which
/// data parallel ranks are added.
struct ScaleSeries {
  std::string name;                     ///< "tp", or "tp=2,cp=2"
  std::string axis;                     ///< dp, tp, cp, pp; empty: a mesh
  std::int64_t tp = 1, cp = 1, pp = 1;  ///< of a mesh
};

struct ScaleOptions {
  std::string config;               ///< the file
  std::vector<std::string> sizes;   ///< as given
  std::vector<int> ranks;           ///< ascending; empty: nothing is run
  std::vector<ScaleSeries> series;  ///< at least one
  std::vector<std::string> modes;   ///< strong, weak
  std::int64_t steps = 8, warmup = 3, rounds = 1;
  double limit_seconds = 1800;        ///< of a run
  std::vector<std::string> launcher;  ///< words; {ranks} stands for their number
  double memory_gib = 0;              ///< of a rank; 0: not known
  std::filesystem::path cluster;      ///< a description (core/cluster.h); empty: no carried-on prediction
  std::filesystem::path output = "scale-results";
  bool resume = false, dry_run = false;
  std::vector<std::string> overrides;  ///< of configurations: --section.key value
};

/// The words after `scale`. Throws Error for what is wrong with them.
ScaleOptions parse_scale_options(const std::vector<std::string>& words);

/// A model to scale.
struct ScaleSize {
  std::string name;  ///< fit for the name of a file
  Config config;
};

/// Of options.sizes, or the CONFIG's own. Throws the Errors of configurations.
std::vector<ScaleSize> scale_sizes(const ScaleOptions& options);

extern const char* const kScaleUsage;

}  // namespace transmamba
