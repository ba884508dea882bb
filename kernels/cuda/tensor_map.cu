#include "kernels/cuda/tensor_map.cuh"

#include "kernels/check.h"
#include "kernels/cuda/device.cuh"

namespace transmamba::cuda {

CUtensorMap tensor_map(const ConstView& x, int rows, std::string_view op, std::string_view name) {
  check_hopper(op);
  static const auto encode = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(
      find_in_driver("cuTensorMapEncodeTiled", 12000));  // CUDA 12.0, which brought it
  constexpr cuuint32_t kDims = 4, kColumns = 32;
  cuuint64_t extents[kDims], strides[kDims - 1];  // innermost first; of the innermost the stride is 1
  const int dims[] = {3, 2, 1, 0};
  for (cuuint32_t i = 0; i < kDims; ++i) {
    extents[i] = static_cast<cuuint64_t>(x.dim(dims[i]));
    const bool used = extents[i] > 1;
    if (i > 0) strides[i - 1] = used ? 2 * static_cast<cuuint64_t>(x.stride(dims[i])) : 16;
  }
  const cuuint32_t box[kDims] = {kColumns, 1, static_cast<cuuint32_t>(rows), 1}, every[kDims] = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, kDims, const_cast<std::byte*>(x.raw()), extents, strides,
             box, every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_64B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(result == CUDA_SUCCESS || result == CUDA_ERROR_INVALID_VALUE, op,
        "{}: the driver cannot describe it to the GPU's copying unit: error {}", name,
        static_cast<int>(result));
  check(result == CUDA_SUCCESS, op,
        "{}: rows of bfloat16 must begin at multiples of 16 bytes, got shape {} with strides {}", name,
        x.shape(), x.strides());
  return map;
}

}  // namespace transmamba::cuda
