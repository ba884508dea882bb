#include "core/allocator.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include "core/arena.h"

namespace transmamba {

namespace {
constexpr std::int64_t kAlign = 64;
constexpr std::int64_t kGrowth = 64 << 20;  // of a GPU's range

std::atomic<bool> keeps_all{false};

/// Never freed; a leak checker finds it here.
void keep(std::byte* block) {
  static std::mutex& mutex = *new std::mutex;
  static auto& kept = *new std::vector<std::byte*>;
  const std::lock_guard lock(mutex);
  kept.push_back(block);
}

std::int64_t round_up(std::int64_t bytes, std::int64_t to) { return (bytes + to - 1) / to * to; }

}  // namespace

/// take() and give_back() are called under the lock, with a multiple of `align`, and the same number for one
/// block.
class Allocator::Pool {
 public:
  explicit Pool(std::int64_t align) : align_(align) {}
  virtual ~Pool() = default;
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  std::shared_ptr<std::byte> allocate(std::int64_t bytes, const std::shared_ptr<Pool>& self) {
    check(bytes >= 0, "allocator", "expected a size >= 0, got {} bytes", bytes);
    bytes = std::max(align_, round_up(bytes, align_));
    const std::lock_guard lock(mutex);
    std::byte* block = take(bytes);
    in_use += bytes;
    peak = std::max(peak, in_use);
    return {block, [self, bytes](std::byte* returned) {
              const std::lock_guard lock(self->mutex);
              self->in_use -= bytes;
              self->give_back(returned, bytes);
            }};
  }

  virtual std::uint64_t fingerprint() const { return 0; }  ///< under the lock
  virtual bool owns(const void*) const { return false; }

  std::mutex mutex;
  std::int64_t in_use = 0, peak = 0, reserved = 0;

 protected:
  virtual std::byte* take(std::int64_t bytes) = 0;
  virtual void give_back(std::byte* block, std::int64_t bytes) = 0;

 private:
  std::int64_t align_;
};

namespace {

class HostPool : public Allocator::Pool {
 public:
  HostPool() : Pool(kAlign) {}
  ~HostPool() override {
    for (auto& [bytes, blocks] : free_)
      for (std::byte* block : blocks)
        if (keeps_all)
          keep(block);
        else
          std::free(block);
  }

 private:
  std::byte* take(std::int64_t bytes) override {
    if (auto it = free_.find(bytes); it != free_.end() && !it->second.empty() && !keeps_all) {
      std::byte* const block = it->second.back();
      it->second.pop_back();
      return block;
    }
    auto* const block = static_cast<std::byte*>(std::aligned_alloc(kAlign, static_cast<std::size_t>(bytes)));
    check(block != nullptr, "allocator", "out of memory: {} bytes wanted with {} in use", bytes, in_use);
    reserved += bytes;
    return block;
  }
  void give_back(std::byte* block, std::int64_t bytes) override { free_[bytes].push_back(block); }

  std::map<std::int64_t, std::vector<std::byte*>> free_;  // by size
};

class PinnedPool : public Allocator::Pool {
 public:
  explicit PinnedPool(const Stream& stream) : Pool(kAlign), stream_(stream) {}
  ~PinnedPool() override {
    for (auto& [bytes, blocks] : free_)
      for (Block& block : blocks) gpu::free_pinned(block.memory);
  }

 private:
  struct Block {
    std::byte* memory;
    gpu::Event event;  // after the copies that may still read or write it
  };
  std::byte* take(std::int64_t bytes) override {
    std::vector<Block>& blocks = free_[bytes];
    const auto ready =
        std::find_if(blocks.begin(), blocks.end(), [](const Block& block) { return block.event.passed(); });
    if (ready == blocks.end()) {
      reserved += bytes;
      return gpu::allocate_pinned(bytes);
    }
    std::byte* const memory = ready->memory;
    blocks.erase(ready);
    return memory;
  }
  void give_back(std::byte* block, std::int64_t bytes) override {
    try {
      gpu::Event event;
      event.record(stream_);
      free_[bytes].push_back({block, std::move(event)});
    } catch (
        const Error&) {  // the GPU has failed, which its next call says; who may still write here is unknown
    }
  }

  Stream stream_;
  std::map<std::int64_t, std::vector<Block>> free_;  // by size, those returned first in front
};

class ArenaPool : public Allocator::Pool {
 public:
  explicit ArenaPool(std::unique_ptr<gpu::MemoryRange> range)
      : Pool(Arena::kAlign), range_(std::move(range)) {}
  std::uint64_t fingerprint() const override { return arena_.fingerprint(); }
  bool owns(const void* address) const override {
    const auto* const at = static_cast<const std::byte*>(address);
    return at >= range_->address() && at < range_->address() + range_->size();
  }

 private:
  std::byte* take(std::int64_t bytes) override {
    std::int64_t offset = arena_.take(bytes);
    if (offset < 0) {
      grow(arena_.missing(bytes), bytes);
      offset = arena_.take(bytes);
    }
    return range_->address() + offset;
  }
  void give_back(std::byte* block, std::int64_t) override { arena_.give_back(block - range_->address()); }

  void grow(std::int64_t missing, std::int64_t wanted) {
    const std::int64_t least = round_up(missing, range_->granularity());
    for (const std::int64_t bytes : {round_up(missing, std::max(kGrowth, range_->granularity())), least})
      if (range_->extend(bytes)) {
        arena_.extend(bytes);
        reserved += bytes;
        return;
      }
    constexpr double kMiB = 1 << 20;
    const auto mib = [](std::int64_t bytes) { return static_cast<double>(bytes) / kMiB; };
    fail("allocator",
         "out of GPU memory: {:.1f} MiB wanted with {:.1f} MiB in use; {:.1f} MiB of the GPU's {:.1f} are "
         "held "
         "here, and it has no {:.1f} more to give",
         mib(wanted), mib(in_use), mib(reserved), mib(range_->size()), mib(least));
  }

  std::unique_ptr<gpu::MemoryRange> range_;
  Arena arena_;
};

}  // namespace

Allocator::Allocator() : pool_(std::make_shared<HostPool>()) {}
Allocator::Allocator(std::unique_ptr<gpu::MemoryRange> range)
    : pool_(std::make_shared<ArenaPool>(std::move(range))) {}
Allocator::Allocator(std::shared_ptr<Pool> pool) : pool_(std::move(pool)) {}
Allocator Allocator::pinned(const Stream& stream) { return Allocator(std::make_shared<PinnedPool>(stream)); }

std::shared_ptr<std::byte> Allocator::allocate(std::int64_t bytes) { return pool_->allocate(bytes, pool_); }

std::int64_t Allocator::bytes_in_use() const {
  const std::lock_guard lock(pool_->mutex);
  return pool_->in_use;
}

std::int64_t Allocator::peak_bytes() const {
  const std::lock_guard lock(pool_->mutex);
  return pool_->peak;
}

std::int64_t Allocator::reserved_bytes() const {
  const std::lock_guard lock(pool_->mutex);
  return pool_->reserved;
}

void Allocator::reset_peak() {
  const std::lock_guard lock(pool_->mutex);
  pool_->peak = pool_->in_use;
}

bool Allocator::owns(const void* address) const { return pool_->owns(address); }
std::uint64_t Allocator::fingerprint() const {
  const std::lock_guard lock(pool_->mutex);
  return pool_->fingerprint();
}

void Allocator::keep_all() { keeps_all = true; }

std::byte* ArenaScratch::take(std::int64_t bytes) {
  auto block = memory_.allocate(bytes);
  const std::lock_guard lock(mutex_);
  taken_.push_back(std::move(block));
  return taken_.back().get();
}

void ArenaScratch::give_back(std::byte* block) noexcept {
  const std::lock_guard lock(mutex_);  // few are taken at a time, and the last ones go first
  const auto found =
      std::find_if(taken_.rbegin(), taken_.rend(), [&](const auto& taken) { return taken.get() == block; });
  if (found != taken_.rend()) taken_.erase(std::next(found).base());
}

}  // namespace transmamba
