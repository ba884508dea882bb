// The SSD's chunks by warpgroup products: copies of chunks, and a state in a warpgroup's registers.
#pragma once

#include "kernels/cuda/ssd_bf16.cuh"
#include "kernels/cuda/tensor_map.cuh"
#include "kernels/cuda/warpgroup.cuh"

namespace transmamba::cuda::ssd {

constexpr int kGroup = 128;  // threads of a warpgroup

/// Starts the copy of a head's chunk, by one thread.
template <int kColumns>
__device__ void copy_chunk(const Swizzled<kTokens, kColumns>& to, const CUtensorMap& map, std::int64_t b,
                           std::int64_t h, std::int64_t chunk, const Arrival& arrival) {
#pragma unroll
  for (int block = 0; block < to.kBlocks; ++block)
    copy_box(to.block(block), map, block, static_cast<int>(h), static_cast<int>(chunk) * kTokens,
             static_cast<int>(b), arrival);
}

/// The thread's warp of its warpgroup, and what it holds of accumulators: rows g, g + 8, columns c, c + 1.
struct Place {
  int warp = static_cast<int>(threadIdx.x % kGroup / kWarp);
  int g = static_cast<int>(threadIdx.x % kWarp / 4), c = static_cast<int>(threadIdx.x % 4 * 2);
};

/// S^T (p, n) of a block: 64 rows a tile; a warp has rows 16 warp.. of each. Rows past p stay zero.
template <int N, int P>
struct State {
  static constexpr int kTiles = (P + 63) / 64;
  WarpgroupTile<N> tile[kTiles];

  __device__ void fill(float x) {
#pragma unroll
    for (auto& t : tile)
#pragma unroll
      for (auto& j : t)
#pragma unroll
        for (float& value : j) value = x;
  }
  __device__ void scale(float factor) {
#pragma unroll
    for (auto& t : tile)
#pragma unroll
      for (auto& j : t)
#pragma unroll
        for (float& value : j) value *= factor;
  }
  /// f(p, n, value) of the elements that this thread holds.
  template <class F>
  __device__ void each(const Place& my, F&& f) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if (64 * t + 16 * my.warp >= P) continue;
#pragma unroll
      for (int j = 0; j < N / 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          f(64 * t + 16 * my.warp + my.g + i / 2 * 8, 8 * j + my.c + i % 2, tile[t][j][i]);
    }
  }
  __device__ void put(const Place& my, const Swizzled<P, N>& out) const {
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
      if (64 * t + 16 * my.warp < P) out.put(64 * t + 16 * my.warp, tile[t]);
  }
  /// S^T += (weight o V)^T K of a chunk, by all warps of the group.
  __device__ void add(const Place& my, const Swizzled<kTokens, P>& v, const float* weight,
                      const Swizzled<kTokens, N>& k) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      std::uint32_t left[kTokens / 16][4] = {};
      if (64 * t + 16 * my.warp < P)
#pragma unroll
        for (int step = 0; step < kTokens / 16; ++step) {
          v.load_a_transposed(left[step], 16 * step, 64 * t + 16 * my.warp);
          scale_along_k(left[step], weight, 16 * step);
        }
      hold(tile[t]);
      warpgroup_fence();
#pragma unroll
      for (int step = 0; step < kTokens / 16; ++step)
        warpgroup_multiply<true>(tile[t], left[step], k.along_rows(step), true);
      warpgroup_commit();
      warpgroup_wait<0>();  // or there would be too few registers
      hold(tile[t]);
    }
  }
};

}  // namespace transmamba::cuda::ssd
