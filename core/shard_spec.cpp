#include "core/shard_spec.h"

#include <fmt/format.h>

#include <algorithm>

namespace transmamba {
namespace {
constexpr auto kWhere = "shard_spec";
}

// global_index runs once an element of a model, so nothing here is made into text unless it is wrong.
void ShardSpec::validate() const {
  if (dim < -1 || dim >= global.rank())
    fail(kWhere, "{}: expected a dim from -1 (replicated) to {}, got {}", to_string(*this), global.rank() - 1,
         dim);
  if (parts < 1) fail(kWhere, "{}: expected at least 1 part, got {}", to_string(*this), parts);
  if (index < 0 || index >= parts)
    fail(kWhere, "{}: expected an index from 0 to {}, got {}", to_string(*this), parts - 1, index);
}

std::int64_t ShardSpec::start_of(int part) const {
  const std::int64_t extent = global[dim], run = (extent + parts - 1) / parts;
  return std::min(extent, part * run);
}

Shape ShardSpec::shape() const {
  validate();
  Shape local = global;
  if (dim >= 0) local[dim] = start_of(index + 1) - start_of(index);
  return local;
}

Shape ShardSpec::offset() const {
  validate();
  Shape start = global;
  for (int i = 0; i < start.rank(); ++i) start[i] = 0;
  if (dim >= 0) start[dim] = start_of(index);
  return start;
}

std::int64_t ShardSpec::global_index(std::int64_t local) const {
  const Shape extents = shape();
  if (local < 0 || local >= extents.numel())
    fail(kWhere, "{}: expected a local index from 0 to {}, got {}", to_string(*this), extents.numel() - 1,
         local);
  if (replicated()) return local;
  // Seen from the cut dim, both tensors are (outer, dim, inner), and only the middle extent differs.
  std::int64_t inner = 1;
  for (int i = dim + 1; i < global.rank(); ++i) inner *= global[i];
  const std::int64_t held = extents[dim] * inner;
  return local / held * (global[dim] * inner) + start_of(index) * inner + local % held;
}

std::string to_string(const ShardSpec& spec) {
  if (spec.dim == -1) return fmt::format("{} replicated", to_string(spec.global));
  return fmt::format("{} cut along dim {}, part {} of {}", to_string(spec.global), spec.dim, spec.index,
                     spec.parts);
}

}  // namespace transmamba
