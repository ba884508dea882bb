// Tiles of bfloat16 for the tensor cores: asynchronous copies from global to shared memory, ldmatrix, and
// mma.m16n8k16 with float32 accumulation (PTX ISA, "Matrix Fragments for mma.m16n8k16"). Needs sm_80.
//
// With lane = 4 g + c of a warp, a thread holds of
//   A (16 x 16)  a[0] (g, 2c..), a[1] (g + 8, 2c..), a[2] (g, 2c + 8..), a[3] (g + 8, 2c + 8..)
//   B (16 x 8)   b[0] (2c.., g), b[1] (2c + 8.., g)
//   C (16 x 8)   c[0], c[1] (g, 2c..), c[2], c[3] (g + 8, 2c..)
// So C, rounded, is a B whose k runs along C's columns and whose n along its rows: what a product made is an
// operand of the next one without leaving its registers.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace transmamba::cuda {

using bf16 = __nv_bfloat16;

__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// 16 bytes, or zeros where not `valid` (then nothing is read).
__device__ inline void copy_async(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0));
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;"); }
/// Until at most `kPending` groups of this thread's copies are under way.
template <int kPending>
__device__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending));
}

__device__ inline std::uint32_t pack(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const std::uint32_t&>(both);
}
__device__ inline float2 unpack(std::uint32_t both) {
  return {__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u)};
}

__device__ inline void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                    std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// A matrix in shared memory, row-major. Rows are 16 bytes longer than they need be, so that eight of them at
/// one column lie in different banks.
template <int kRows, int kColumns>
struct Tile {
  static_assert(kRows % 16 == 0 && kColumns % 16 == 0);
  static constexpr int kPitch = kColumns + 8;
  static constexpr int kBytes = kRows * kPitch * static_cast<int>(sizeof(bf16));
  bf16* data;

  __device__ bf16* at(int row, int column) const { return data + row * kPitch + column; }
  __device__ void set(int row, int column, float low, float high) const {
    *reinterpret_cast<std::uint32_t*>(at(row, column)) = pack(low, high);
  }
  __device__ float2 get(int row, int column) const {
    return unpack(*reinterpret_cast<const std::uint32_t*>(at(row, column)));
  }

  /// A = X[row.., column..], 16 x 16.
  __device__ void load_a(std::uint32_t (&a)[4], int row, int column) const {
    load<false>(a, at(row + lane() % 16, column + lane() / 16 * 8));
  }
  /// A = X[row.., column..]^T: m runs along columns, k along rows.
  __device__ void load_a_transposed(std::uint32_t (&a)[4], int row, int column) const {
    load<true>(a, at(row + lane() % 8 + lane() / 16 * 8, column + lane() / 8 % 2 * 8));
  }
  /// Two B side by side, b[0..1] and b[2..3], k along X's rows, n along its columns.
  __device__ void load_b(std::uint32_t (&b)[4], int row, int column) const {
    load<true>(b, at(row + lane() % 16, column + lane() / 16 * 8));
  }
  /// Two B side by side of X^T: n along X's rows, k along its columns.
  __device__ void load_b_transposed(std::uint32_t (&b)[4], int row, int column) const {
    load<false>(b, at(row + lane() % 8 + lane() / 16 * 8, column + lane() / 8 % 2 * 8));
  }

  /// Starts to copy rows [0, count) from rows `stride` elements apart; the others become zero. By the
  /// kThreads threads of a block; rows begin at multiples of 16 bytes.
  template <int kThreads>
  __device__ void start_copy(const bf16* global, std::int64_t stride, std::int64_t count) const {
    constexpr int kPieces = kColumns / 8, kStep = kThreads / kPieces;  // a thread keeps its column
    const int first = static_cast<int>(threadIdx.x) / kPieces,
              column = static_cast<int>(threadIdx.x) % kPieces * 8;
    if (kThreads % kPieces != 0 && first >= kStep) return;
    const bf16* from = global + first * stride + column;
    bf16* to = at(first, column);
    const std::int64_t step = kStep * stride;
    if (count >= kRows && kRows % kStep == 0) {  // nearly always
#pragma unroll
      for (int row = 0; row < kRows; row += kStep, from += step) copy_async(to + row * kPitch, from, true);
    } else {
      for (int row = first; row < kRows; row += kStep, from += step, to += kStep * kPitch)
        copy_async(to, row < count ? from : global, row < count);
    }
  }

 private:
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  template <bool kTransposed>
  __device__ static void load(std::uint32_t (&r)[4], const bf16* row) {
    if constexpr (kTransposed)
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                   : "r"(shared_address(row))
                   : "memory");
    else
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                   : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                   : "r"(shared_address(row))
                   : "memory");
  }
};

/// Rows of A, or columns of A^T's source, times a factor each: k = `first` + 0.. of `factor`.
__device__ inline void scale_along_k(std::uint32_t (&a)[4], const float* factor, int first) {
  const int c = static_cast<int>(threadIdx.x) % 4 * 2;
  const float2 low = *reinterpret_cast<const float2*>(factor + first + c),
               high = *reinterpret_cast<const float2*>(factor + first + c + 8);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 x = unpack(a[i]), f = i < 2 ? low : high;
    a[i] = pack(x.x * f.x, x.y * f.y);
  }
}

}  // namespace transmamba::cuda
