#include "kernels/cuda/sort_pairs.cuh"

#include <cub/device/device_radix_sort.cuh>

namespace transmamba::cuda {

void sort_pairs(const SortPairs& a, std::string_view op, const Stream& stream) {
  check_cuda(cub::DeviceRadixSort::SortPairs(a.memory, a.scratch, a.keys, a.sorted_keys, a.values,
                                             a.sorted_values, a.count, 0, a.bits, handle_of(stream)),
             op);
}

}  // namespace transmamba::cuda
