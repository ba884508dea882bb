// The CPU backend's one source of parallelism.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/types.h"

namespace transmamba::cpu {

/// work(context, i) for i in [0, n), on the calling thread and up to threads - 1 workers that belong to it.
/// Items are dealt as threads come free. Returns when all are done; rethrows the first exception.
void run_parallel(std::int64_t n, int threads, void (*work)(void*, std::int64_t), void* context);

/// f(i) for i in [0, n) on up to stream.threads cores. Work items must write disjoint memory, so that results
/// do not depend on the number of threads. The first exception is rethrown here.
template <class F>
void parallel_for(std::int64_t n, const Stream& stream, F&& f) {
  if (stream.threads <= 1 || n <= 1) {
    for (std::int64_t i = 0; i < n; ++i) f(i);
    return;
  }
  run_parallel(
      n, stream.threads,
      [](void* context, std::int64_t i) { (*static_cast<std::remove_reference_t<F>*>(context))(i); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

/// f(begin, end) over [0, n) in blocks of at most `block`.
template <class F>
void parallel_blocks(std::int64_t n, std::int64_t block, const Stream& stream, F&& f) {
  parallel_for((n + block - 1) / block, stream,
               [&](std::int64_t i) { f(i * block, std::min(n, (i + 1) * block)); });
}

}  // namespace transmamba::cpu
