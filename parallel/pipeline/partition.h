// Which layers each virtual pipeline stage holds.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

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

}  // namespace transmamba
