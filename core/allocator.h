// Where tensors get their memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "kernels/device.h"

namespace transmamba {

/// Hands out blocks and keeps returned ones for the next requests, so that after the first step training gets
/// nothing from the system. Thread-safe; blocks may outlive it. Copies share the memory.
class Allocator {
 public:
  /// Of the host, aligned to 64 bytes; returned blocks wait for a request of the same size.
  Allocator();
  /// Of a GPU: one range of addresses that grows and never shrinks, aligned to 256 bytes, best fit. A
  /// returned block is handed out again at once, so all work on blocks must be on one stream.
  explicit Allocator(std::unique_ptr<gpu::MemoryRange> range);
  /// Pinned memory of the host, for copies between it and a GPU on `stream`. A block is handed out again only
  /// after the copies that were enqueued before it was returned.
  static Allocator pinned(const Stream& stream);

  /// Contents are undefined. `bytes` may be 0; the address is never null.
  std::shared_ptr<std::byte> allocate(std::int64_t bytes);
  std::int64_t bytes_in_use() const;
  std::int64_t peak_bytes() const;      ///< most bytes ever in use at once
  std::int64_t reserved_bytes() const;  ///< got from the system so far
  void reset_peak();
  /// Of which blocks of a GPU's range are in use (core/arena.h): where it is what it was, the same requests
  /// get the same addresses. 0 for host memory.
  std::uint64_t fingerprint() const;
  /// Whether an address is in a GPU's range, handed out or not. False for host memory.
  bool owns(const void* address) const;
  /// From now on host memory that is returned to any Allocator of this process stays as it is, neither
  /// unmapped nor handed out again: someone outside may still read and write it. There is no way back.
  static void keep_all();

  class Pool;

 private:
  explicit Allocator(std::shared_ptr<Pool> pool);
  std::shared_ptr<Pool> pool_;
};

/// A GPU allocator's blocks as kernels' workspaces, so that they are counted with all others. Thread-safe.
/// Must outlive what it has handed out.
class ArenaScratch : public Scratch {
 public:
  explicit ArenaScratch(Allocator memory) : memory_(std::move(memory)) {}
  std::byte* take(std::int64_t bytes) override;
  void give_back(std::byte* block) noexcept override;

 private:
  Allocator memory_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<std::byte>> taken_;
};

}  // namespace transmamba
