// A run of a rank's elements as boxes of the global tensor: what a file's hyperslabs can say.
#pragma once

#include <vector>

#include "core/shard_spec.h"

namespace transmamba {

/// `extent` elements from `offset` of the global tensor, which are `numel` consecutive ones of the rank's
/// slice from `local` on, counted row-major.
struct ShardBox {
  std::int64_t local = 0;
  Shape offset, extent;
};

/// Elements [begin, end) of spec's slice: at most 2 rank - 1 boxes, in order; one if that is all of the
/// slice.
std::vector<ShardBox> shard_boxes(const ShardSpec& spec, std::int64_t begin, std::int64_t end);

}  // namespace transmamba
