// Gradients of parameters are sums over tokens. Tokens are cut into runs, each run is summed by one block
// into a row of partial sums, and the rows are added in a fixed order: the same bits every time.
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

/// Where partial sums go: number i of a row to data[i / columns * row + i % columns * column], for i < size.
template <class T>
struct Sums {
  T* data = nullptr;
  std::int64_t size = 0, columns = 1, row = 0, column = 0;
};

/// Adds `count` rows of `partials`, each `pitch` apart, to `out`, and what follows in them to `after`. A
/// block owns a warp of columns; each of its kRows warps adds every kRows-th row.
template <int kRows, class P, class T>
__global__ void add_partials(const P* partials, std::int64_t count, std::int64_t pitch, Sums<T> out,
                             Sums<T> after) {
  __shared__ double sums[kRows][kWarp];
  const unsigned lane = threadIdx.x % kWarp, first = threadIdx.x / kWarp;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kWarp + lane;
  const bool mine = i < out.size + after.size;
  double sum = 0;
  if (mine) {
#pragma unroll 8
    for (std::int64_t row = first; row < count; row += kRows)
      sum += static_cast<double>(partials[row * pitch + i]);
  }
  sums[first][lane] = sum;
  __syncthreads();
  if (first > 0 || !mine) return;
  for (int row = 1; row < kRows; ++row) sum += sums[row][lane];
  const Sums<T>& to = i < out.size ? out : after;
  const std::int64_t at = i < out.size ? i : i - out.size;
  to.data[at / to.columns * to.row + at % to.columns * to.column] += static_cast<T>(sum);
}

template <class P, class T>
void launch_add_partials(std::string_view op, const Stream& stream, const P* partials, std::int64_t count,
                         std::int64_t pitch, const Sums<T>& out, const Sums<T>& after = {}) {
  const auto run = [&](auto rows) {
    launch(op, stream, {(out.size + after.size + kWarp - 1) / kWarp, rows * kWarp}, add_partials<rows, P, T>,
           partials, count, pitch, out, after);
  };
  if (count <= 96)
    run(std::integral_constant<int, 8>{});  // more warps would have little to add
  else
    run(std::integral_constant<int, 32>{});
}

}  // namespace transmamba::cuda
