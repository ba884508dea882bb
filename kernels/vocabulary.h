// Shards of a vocabulary: rows [begin, begin + rows) of `size` words lie here, any number of them, also none.
#pragma once

#include "kernels/types.h"

namespace transmamba {

/// The words of all shards together; `size` 0 means that this shard is all. Throws Error unless the shard
/// lies inside.
inline std::int64_t whole_vocabulary(std::int64_t begin, std::int64_t rows, std::int64_t size,
                                     std::string_view op) {
  const std::int64_t whole = size == 0 ? rows : size;
  check(0 <= begin && begin + rows <= whole, op,
        "vocab_begin: expected a shard inside [0, {}), got {} rows from {}", whole, rows, begin);
  return whole;
}

}  // namespace transmamba
