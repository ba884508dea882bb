// How CPU kernels share (b, t, ...) tensors among threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>

#include "kernels/cpu/parallel_for.h"

namespace transmamba::cpu {

/// Starts on a cache line, so that no vector load crosses one.
template <class T>
struct CacheLineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};
  CacheLineAllocator() = default;
  template <class U>
  CacheLineAllocator(const CacheLineAllocator<U>&) {}
  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kLine)); }
  void deallocate(T* address, std::size_t) { ::operator delete(address, kLine); }
  bool operator==(const CacheLineAllocator&) const { return true; }
};
template <class T>
using Scratch = std::vector<T, CacheLineAllocator<T>>;

/// Elements a work item should touch: long enough to hide the cost of handing it out, short enough to
/// balance.
constexpr std::int64_t kBlockElements = 16384;

/// f(i, j) for every token (i, j) of a (b, t) grid, where a token is a row of `width` elements.
template <class F>
void for_each_token(std::int64_t b, std::int64_t t, std::int64_t width, const Stream& stream, F&& f) {
  const std::int64_t block = std::max<std::int64_t>(1, kBlockElements / std::max<std::int64_t>(1, width));
  parallel_blocks(b * t, block, stream, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) f(row / t, row % t);
  });
}

/// Tokens of one partial sum. Depends on `tokens` only, so that sums do not depend on the number of threads.
inline std::int64_t tokens_per_partial(std::int64_t tokens) {
  constexpr std::int64_t kFewest = 16, kPartials = 32;
  return std::max(kFewest, (tokens + kPartials - 1) / kPartials);
}

/// Sum over i in [0, items) of the `width` numbers that f(i, partial) adds to a zeroed `partial`, in the
/// order of i.
template <class T, class F>
Scratch<T> sum_of_partials(std::int64_t items, std::int64_t width, const Stream& stream, F&& f) {
  Scratch<T> partials(static_cast<std::size_t>(std::max<std::int64_t>(1, items) * width));
  T* const total = partials.data();
  parallel_for(items, stream, [&](std::int64_t i) { f(i, total + i * width); });
  for (std::int64_t i = 1; i < items; ++i) {
    const T* const partial = total + i * width;
#pragma omp simd
    for (std::int64_t k = 0; k < width; ++k) total[k] += partial[k];
  }
  partials.resize(static_cast<std::size_t>(width));
  return partials;
}

/// Requires int32 `tokens` (b, t) to lie in [0, vocab). Serial, so that always the first bad one is named.
inline void check_tokens(const ConstView& tokens, std::int64_t vocab, std::string_view op,
                         std::string_view name) {
  for (std::int64_t i = 0; i < tokens.dim(0); ++i)
    for (std::int64_t j = 0; j < tokens.dim(1); ++j) {
      const std::int32_t token = *tokens.ptr<std::int32_t>(i, j);
      check(0 <= token && token < vocab, op, "{}: expected values in [0, {}), got {} at (b, t) = ({}, {})",
            name, vocab, token, i, j);
    }
}

}  // namespace transmamba::cpu
