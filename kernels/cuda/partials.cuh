// Gradients of parameters are sums over tokens. Tokens are cut into runs, each run is summed by one block
// into a row of float64 partial sums, and the rows are added in order: the same bits every time.
#pragma once

#include "kernels/cuda/device.cuh"

namespace transmamba::cuda {

/// How tokens are cut. Depends on their number only.
struct Runs {
  std::int64_t tokens, length, count;
  explicit Runs(std::int64_t n) : tokens(n) {
    constexpr std::int64_t kShortest = 16, kMost = 256;
    length = n > kShortest * kMost ? (n + kMost - 1) / kMost : kShortest;
    count = (n + length - 1) / length;
  }
  __device__ std::int64_t begin(std::int64_t run) const { return run * length; }
  __device__ std::int64_t end(std::int64_t run) const { return min(tokens, (run + 1) * length); }
};

/// out (rows, columns) += sum over `count` rows of `partials`, each `width` apart and in out's order.
template <class T>
__global__ void add_partials(const double* partials, std::int64_t count, std::int64_t width, Strided<T> out,
                             std::int64_t rows, std::int64_t columns) {
  const std::int64_t i = global_index();
  if (i >= rows * columns) return;
  double sum = 0;
  for (std::int64_t run = 0; run < count; ++run) sum += partials[run * width + i];
  out(i / columns)[i % columns] += static_cast<T>(sum);
}

}  // namespace transmamba::cuda
