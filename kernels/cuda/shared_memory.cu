#include "kernels/shared_memory.h"

#include <cuda.h>

#include <cstring>

#include "kernels/cuda/device.cuh"

namespace transmamba::gpu {
namespace {

using cuda::check_cuda;
using cuda::handle_of;

static_assert(sizeof(cudaIpcMemHandle_t) == sizeof(MemoryName));

struct Own : SharedMemory {
  explicit Own(std::int64_t bytes) {
    check_cuda(cudaMalloc(&memory, static_cast<std::size_t>(bytes)), "gpu: memory to be shared");
  }
  ~Own() override { cudaFree(memory); }
  std::byte* address() const override { return static_cast<std::byte*>(memory); }
  void* memory = nullptr;
};

struct Opened : SharedMemory {
  explicit Opened(const MemoryName& name) {
    cudaIpcMemHandle_t handle{};
    std::memcpy(&handle, name.data(), sizeof handle);
    check_cuda(cudaIpcOpenMemHandle(&memory, handle, cudaIpcMemLazyEnablePeerAccess),
               "gpu: another process's memory");
  }
  ~Opened() override { cudaIpcCloseMemHandle(memory); }
  std::byte* address() const override { return static_cast<std::byte*>(memory); }
  void* memory = nullptr;
};

template <class Function>
Function find(const char* name) {
  return reinterpret_cast<Function>(cuda::find_in_driver(name, 12000));  // the versions that always work
}

CUdeviceptr address_of(const std::uint32_t* word) { return reinterpret_cast<CUdeviceptr>(word); }

void must(CUresult result, const char* what) {
  check(result == CUDA_SUCCESS, "gpu", "{}: the driver's error {}", what, static_cast<int>(result));
}

}  // namespace

std::unique_ptr<SharedMemory> share_memory(std::int64_t bytes, MemoryName& name) {
  auto own = std::make_unique<Own>(bytes);
  check_cuda(cudaMemset(own->memory, 0, static_cast<std::size_t>(bytes)), "gpu");
  check_cuda(cudaDeviceSynchronize(), "gpu");
  cudaIpcMemHandle_t handle{};
  check_cuda(cudaIpcGetMemHandle(&handle, own->memory), "gpu: memory to be shared");
  std::memcpy(name.data(), &handle, sizeof handle);
  return own;
}

std::unique_ptr<SharedMemory> open_memory(const MemoryName& name) { return std::make_unique<Opened>(name); }

void write_word(std::uint32_t* word, std::uint32_t value, const Stream& stream) {
  static const auto write = find<decltype(&cuStreamWriteValue32)>("cuStreamWriteValue32");
  must(write(handle_of(stream), address_of(word), value, CU_STREAM_WRITE_VALUE_DEFAULT), "writing a word");
}

void wait_for_word(const std::uint32_t* word, std::uint32_t value, const Stream& stream) {
  static const auto wait = find<decltype(&cuStreamWaitValue32)>("cuStreamWaitValue32");
  must(wait(handle_of(stream), address_of(word), value, CU_STREAM_WAIT_VALUE_GEQ), "waiting for a word");
}

}  // namespace transmamba::gpu
