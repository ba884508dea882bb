#include "core/tensor.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>

namespace transmamba {

namespace {
constexpr std::int64_t kAlign = 64;

std::atomic<bool> keeps_all{false};

/// Never freed; a leak checker finds it here.
void keep(std::byte* block) {
  static std::mutex& mutex = *new std::mutex;
  static auto& kept = *new std::vector<std::byte*>;
  const std::lock_guard lock(mutex);
  kept.push_back(block);
}

void let_go(std::byte* block) {
  if (keeps_all)
    keep(block);
  else
    std::free(block);
}

}  // namespace

struct Allocator::Pool {
  ~Pool() {
    for (auto& [bytes, blocks] : free)
      for (std::byte* block : blocks) let_go(block);
  }
  std::byte* take(std::int64_t bytes) {
    const std::lock_guard lock(mutex);
    std::byte* block = nullptr;
    if (auto it = free.find(bytes); it != free.end() && !it->second.empty() && !keeps_all) {
      block = it->second.back();
      it->second.pop_back();
    } else {
      block = static_cast<std::byte*>(std::aligned_alloc(kAlign, static_cast<std::size_t>(bytes)));
      check(block != nullptr, "allocator", "out of memory: {} bytes wanted with {} in use", bytes, in_use);
    }
    in_use += bytes;
    peak = std::max(peak, in_use);
    return block;
  }
  void give_back(std::byte* block, std::int64_t bytes) {
    const std::lock_guard lock(mutex);
    in_use -= bytes;
    free[bytes].push_back(block);
  }

  std::mutex mutex;
  std::map<std::int64_t, std::vector<std::byte*>> free;  // by size
  std::int64_t in_use = 0, peak = 0;
};

Allocator::Allocator() : pool_(std::make_shared<Pool>()) {}

std::shared_ptr<std::byte> Allocator::allocate(std::int64_t bytes) {
  check(bytes >= 0, "allocator", "expected a size >= 0, got {} bytes", bytes);
  bytes = std::max(kAlign, (bytes + kAlign - 1) / kAlign * kAlign);
  std::byte* block = pool_->take(bytes);
  return {block, [pool = pool_, bytes](std::byte* returned) { pool->give_back(returned, bytes); }};
}

std::int64_t Allocator::bytes_in_use() const {
  std::lock_guard lock(pool_->mutex);
  return pool_->in_use;
}

std::int64_t Allocator::peak_bytes() const {
  std::lock_guard lock(pool_->mutex);
  return pool_->peak;
}

void Allocator::reset_peak() {
  std::lock_guard lock(pool_->mutex);
  pool_->peak = pool_->in_use;
}

void Allocator::keep_all() { keeps_all = true; }

Tensor::Tensor(Allocator& allocator, const Shape& shape, DType dtype)
    : block_(allocator.allocate(shape.numel() * size_of(dtype))), view_(block_.get(), dtype, shape) {}

}  // namespace transmamba
