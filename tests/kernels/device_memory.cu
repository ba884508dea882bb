#include "device_memory.h"

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <stdexcept>

namespace transmamba::testing {
namespace {

bool find_gpu() {
  int count = 0;
  cudaDeviceProp properties{};
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0 ||
      cudaGetDeviceProperties(&properties, 0) != cudaSuccess) {
    std::puts("kernel tests: no GPU was found, so only the CPU kernels are tested");
    return false;
  }
  std::printf("kernel tests: on the CPU and on GPU %s\n", properties.name);
  return true;
}

}  // namespace

bool has_gpu() {
  static const bool found = find_gpu();
  return found;
}

std::shared_ptr<std::byte> gpu_visible_memory(std::size_t bytes) {
  void* memory = nullptr;
  // With unified addresses, pinned memory is mapped at the same address on both sides.
  const cudaError_t result = cudaHostAlloc(&memory, bytes, cudaHostAllocMapped);
  if (result != cudaSuccess) throw std::runtime_error(cudaGetErrorString(result));
  return {static_cast<std::byte*>(memory), [](std::byte* address) { cudaFreeHost(address); }};
}

void wait_for_gpu() {
  const cudaError_t result = cudaDeviceSynchronize();
  EXPECT_EQ(result, cudaSuccess) << cudaGetErrorString(result);
}

}  // namespace transmamba::testing
