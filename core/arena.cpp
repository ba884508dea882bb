#include "core/arena.h"

#include <iterator>

#include "kernels/check.h"

namespace transmamba {
namespace {

std::int64_t aligned(std::int64_t bytes) {
  return (bytes + Arena::kAlign - 1) / Arena::kAlign * Arena::kAlign;
}

}  // namespace

void Arena::add_free(std::int64_t offset, std::int64_t bytes) {
  free_.emplace(offset, bytes);
  free_by_size_.emplace(bytes, offset);
}

void Arena::remove_free(std::map<std::int64_t, std::int64_t>::iterator run) {
  free_by_size_.erase({run->second, run->first});
  free_.erase(run);
}

std::int64_t Arena::take(std::int64_t bytes) {
  bytes = aligned(bytes);
  const auto best = free_by_size_.lower_bound({bytes, 0});
  if (best == free_by_size_.end()) return -1;
  const auto [size, offset] = *best;
  remove_free(free_.find(offset));
  if (size > bytes) add_free(offset + bytes, size - bytes);
  taken_.emplace(offset, bytes);
  taken_bytes_ += bytes;
  return offset;
}

void Arena::give_back(std::int64_t offset) {
  const auto run = taken_.find(offset);
  check(run != taken_.end(), "arena", "nothing is taken at offset {}", offset);
  std::int64_t begin = offset, end = offset + run->second;
  taken_bytes_ -= run->second;
  taken_.erase(run);
  const auto after = free_.lower_bound(begin);
  if (after != free_.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second == begin) {
      begin = before->first;
      remove_free(before);
    }
  }
  if (after != free_.end() && after->first == end) {
    end += after->second;
    remove_free(after);
  }
  add_free(begin, end - begin);
}

std::int64_t Arena::missing(std::int64_t bytes) const {
  const auto last = free_.empty() ? free_.end() : std::prev(free_.end());
  const bool at_end = last != free_.end() && last->first + last->second == size_;
  return aligned(bytes) - (at_end ? last->second : 0);
}

std::uint64_t Arena::fingerprint() const {
  std::uint64_t hash = 0xcbf29ce484222325;  // 64-bit FNV-1a over words
  for (const auto& [offset, bytes] : taken_)
    for (const std::int64_t word : {offset, bytes})
      hash = (hash ^ static_cast<std::uint64_t>(word)) * 0x100000001b3;
  return hash;
}

void Arena::extend(std::int64_t bytes) {
  check(bytes > 0 && bytes % kAlign == 0, "arena", "expected a positive multiple of {} bytes, got {}", kAlign,
        bytes);
  taken_.emplace(size_, bytes);  // as if it had been taken: giving it back joins it to its neighbour
  taken_bytes_ += bytes;
  size_ += bytes;
  give_back(size_ - bytes);
}

}  // namespace transmamba
