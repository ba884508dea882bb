// Which layers each virtual pipeline stage holds.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/step_cost.h"

namespace transmamba {

/// Layers [begin, end) of the model. The first stage also holds the embedding, the last the final norm and
/// head.
struct Stage {
  std::int64_t begin = 0, end = 0;
  bool is_first = false, is_last = false;
  bool operator==(const Stage&) const = default;
};

/// `stages` runs of layers, each with one layer at least, whose largest cost is as small as can be; ties go
/// to the more even division. `layer`: cost of each. Throws Error where there are more stages than layers.
std::vector<Stage> partition(std::span<const double> layer, double embedding, double head,
                             std::int64_t stages);

/// What one micro-batch takes, and the schedule that it passes in.
struct PipelineLoad {
  std::vector<Seconds> layer;
  Seconds embedding, head;
  double transfer = 0;  ///< from stage to stage
  int pp = 1, chunks = 1;
  std::int64_t micro_batches = 1;
};

/// The same, for the shortest step as simulate() (parallel/pipeline/schedule.h) has it: never longer than
/// that of partition() of layers' totals, from which it goes on by moving cuts until that helps no more, so
/// that it need not be the shortest of all. Quick, and a function of its argument alone.
std::vector<Stage> quickest_partition(const PipelineLoad& load);

}  // namespace transmamba
