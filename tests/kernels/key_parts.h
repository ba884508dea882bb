// Attention over keys in parts: what its tests share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace transmamba::testing {

/// Keys [first, second).
using Keys = std::pair<std::int64_t, std::int64_t>;

/// The parts between `cuts`, in every order.
inline std::vector<std::vector<Keys>> orders_of_parts(const std::vector<std::int64_t>& cuts) {
  std::vector<Keys> parts;
  for (std::size_t i = 0; i + 1 < cuts.size(); ++i) parts.emplace_back(cuts[i], cuts[i + 1]);
  std::vector<std::vector<Keys>> orders;
  do orders.push_back(parts);
  while (std::next_permutation(parts.begin(), parts.end()));
  return orders;
}

/// The offset of queries to these keys, if it is `offset` to all; where they see all of them, keys - 1.
inline std::int64_t offset_to(const Keys& keys, std::int64_t offset) {
  return std::min(offset - keys.first, keys.second - keys.first - 1);
}

}  // namespace transmamba::testing
