// Sorting, in a file of its own: CUB takes longer to compile than what uses it.
#pragma once

#include "kernels/cuda/device.cuh"

namespace transmamba::cuda {

/// Sorts `count` pairs by the lowest `bits` of their keys; pairs of equal keys keep their order. Without
/// `memory` it only sets `scratch`, the bytes that memory must have.
struct SortPairs {
  void* memory;
  std::size_t& scratch;
  const std::uint32_t* keys;
  std::uint32_t* sorted_keys;
  const std::int32_t* values;
  std::int32_t* sorted_values;
  int count, bits;
};
void sort_pairs(const SortPairs& a, std::string_view op, const Stream& stream);

}  // namespace transmamba::cuda
