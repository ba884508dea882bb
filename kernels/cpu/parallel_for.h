// The CPU backend's one source of parallelism.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

#include "kernels/types.h"

namespace transmamba::cpu {

/// f(i) for i in [0, n) on up to stream.threads cores. Work items must write disjoint memory, so that results
/// do not depend on the number of threads. The first exception is rethrown here.
template <class F>
void parallel_for(std::int64_t n, const Stream& stream, F&& f) {
  const int threads = static_cast<int>(std::min<std::int64_t>(stream.threads, n));
  if (threads <= 1) {
    for (std::int64_t i = 0; i < n; ++i) f(i);
    return;
  }
  std::exception_ptr error;
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (std::int64_t i = 0; i < n; ++i) {
    try {
      f(i);
    } catch (...) {
      if (!failed.test_and_set()) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

/// f(begin, end) over [0, n) in blocks of at most `block`.
template <class F>
void parallel_blocks(std::int64_t n, std::int64_t block, const Stream& stream, F&& f) {
  parallel_for((n + block - 1) / block, stream,
               [&](std::int64_t i) { f(i * block, std::min(n, (i + 1) * block)); });
}

}  // namespace transmamba::cpu
