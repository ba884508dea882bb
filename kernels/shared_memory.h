// GPU memory that the processes of one host share, each with its own GPU: copies into another's run on copy
// engines and take no multiprocessors. In a build without CUDA every function here throws Error and says so.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "kernels/types.h"

namespace transmamba::gpu {

/// What another process opens the memory by.
using MemoryName = std::array<std::byte, 64>;

class SharedMemory {
 public:
  virtual ~SharedMemory() = default;  ///< others have closed it before its owner does
  virtual std::byte* address() const = 0;
};
/// `bytes` of this process's GPU, all zero. On return `name` names it.
std::unique_ptr<SharedMemory> share_memory(std::int64_t bytes, MemoryName& name);
/// Another process's. Throws Error where this process's GPU cannot reach it.
std::unique_ptr<SharedMemory> open_memory(const MemoryName& name);

/// In the order of the stream, after all that it has written: *word = value, also of another GPU.
void write_word(std::uint32_t* word, std::uint32_t value, const Stream& stream);
/// What is enqueued from now on begins once *word, of this GPU, has come to `value`: counted on from there by
/// less than 2^31.
void wait_for_word(const std::uint32_t* word, std::uint32_t value, const Stream& stream);

}  // namespace transmamba::gpu
