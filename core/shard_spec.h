// Which part of a global tensor a rank holds. Initial values, checkpoint hyperslabs, norms that count each
// parameter once and the plan of a run all read this.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/types.h"

namespace transmamba {

/// Dim `dim` of `global` is cut into `parts` runs of ceil(extent / parts), of which this is number `index`;
/// the last ones may be shorter or empty. dim -1 is replicated. Every function throws Error where the spec
/// makes no sense, naming the spec.
struct ShardSpec {
  Shape global;
  int dim = -1;
  int parts = 1;
  int index = 0;

  bool replicated() const { return dim < 0 || parts == 1; }
  Shape shape() const;   ///< extents held here
  Shape offset() const;  ///< global coordinates of the hyperslab's start; an empty one's is the dim's end
  /// Row-major index in the global tensor of element `local`, counted row-major over shape().
  std::int64_t global_index(std::int64_t local) const;
  void validate() const;

 private:
  std::int64_t start_of(int part) const;  ///< of a run along `dim`; of the one past the last: the extent
};

std::string to_string(const ShardSpec& spec);  ///< "(8, 6) cut along dim 0, part 1 of 4"

}  // namespace transmamba
