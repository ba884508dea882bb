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

constexpr int kPartialRows = 32;  // added at a time, at most

/// Adds `count` rows of `partials`, each `pitch` apart, to `out`, and what follows in them to `after`. A
/// block owns a warp of columns, of which each of its `warps` adds every so many rows.
template <class P, class T>
__global__ void add_partials(const P* partials, std::int64_t count, std::int64_t pitch, Sums<T> out,
                             Sums<T> after) {
  constexpr int kAhead = 12;  // rows that a warp asks for before it adds the first
  __shared__ double sums[kPartialRows][kWarp];
  const int lane = static_cast<int>(threadIdx.x) % kWarp, first = static_cast<int>(threadIdx.x) / kWarp,
            warps = static_cast<int>(blockDim.x) / kWarp;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kWarp + lane;
  const bool mine = i < out.size + after.size;
  double sum = 0;
  if (mine) {
    for (std::int64_t begin = first; begin < count; begin += kAhead * warps) {
      P ahead[kAhead];
#pragma unroll
      for (int n = 0; n < kAhead; ++n)
        ahead[n] = begin + n * warps < count ? partials[(begin + n * warps) * pitch + i] : P(0);
#pragma unroll
      for (int n = 0; n < kAhead; ++n) sum += static_cast<double>(ahead[n]);
    }
  }
  sums[first][lane] = sum;
  __syncthreads();
  if (first > 0 || !mine) return;
  for (int row = 1; row < warps; ++row) sum += sums[row][lane];
  const Sums<T>& to = i < out.size ? out : after;
  const std::int64_t at = i < out.size ? i : i - out.size;
  to.data[at / to.columns * to.row + at % to.columns * to.column] += static_cast<T>(sum);
}

template <class P, class T>
void launch_add_partials(std::string_view op, const Stream& stream, const P* partials, std::int64_t count,
                         std::int64_t pitch, const Sums<T>& out, const Sums<T>& after = {}) {
  const int warps = count <= 3 * kPartialRows ? kPartialRows / 4 : kPartialRows;
  launch(op, stream, {(out.size + after.size + kWarp - 1) / kWarp, warps * kWarp}, add_partials<P, T>,
         partials, count, pitch, out, after);
}

}  // namespace transmamba::cuda
