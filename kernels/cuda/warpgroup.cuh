// Warpgroup products of Hopper's tensor cores (PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions"):
// D (64, n) float32 in the registers of 4 warps, B and mostly A read from shared memory by the unit itself.
// Needs sm_90a.
//
// Matrices lie in shared memory in columns of 32 (64 bytes a row) with the 64-byte swizzle: of 16-byte piece
// c of row r the two lower bits of c are exclusive-ored with those of r / 2. Every block of columns begins at
// a multiple of 512 bytes. A matrix of tokens (k of one product) x channels serves both as it stands and
// transposed.
#pragma once

#include "kernels/cuda/tensor_core.cuh"

namespace transmamba::cuda {

/// What is compiled has these products: a kernel's other builds do nothing but trap.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool kHasWarpgroups = true;
#else
constexpr bool kHasWarpgroups = false;
#endif

/// Four 8 x 8 matrices, each as a warp holds an accumulator; a lane says where one row goes.
__device__ inline void store_matrices(std::uint32_t row, std::uint32_t a, std::uint32_t b, std::uint32_t c,
                                      std::uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(row), "r"(a), "r"(b),
               "r"(c), "r"(d)
               : "memory");
}

/// Of all threads of a block, whatever part of the kernel each of its warps is in.
__device__ inline void barrier() { asm volatile("bar.sync 0;" ::: "memory"); }
/// Of kThreads of them; kNumber is not 0.
template <int kNumber, int kThreads>
__device__ void barrier() {
  asm volatile("bar.sync %0, %1;" ::"n"(kNumber), "n"(kThreads) : "memory");
}

/// The first multiple of 1024 bytes from there.
__device__ inline char* aligned(char* shared) {
  return shared + (1024 - shared_address(shared) % 1024) % 1024;
}

/// A matrix in shared memory as the unit wants it.
template <int kRows, int kColumns>
struct Swizzled {
  static_assert(kRows % 8 == 0 && kColumns % 32 == 0);
  static constexpr int kBlocks = kColumns / 32, kBlock = kRows * 64;  // of 32 columns, and its bytes
  static constexpr int kBytes = kBlocks * kBlock;
  char* data;

  __device__ char* block(int i) const { return data + i * kBlock; }
  /// Of 8 columns from a multiple of 8.
  __device__ char* at(unsigned row, unsigned column) const {
    return data + column / 32 * kBlock + row * 64 + ((column / 8 % 4) ^ (row / 2 % 4)) * 16;
  }

  /// Rows are m (of A) or n (of B), columns k: columns [16 step, 16 step + 16) from row 0.
  __device__ std::uint64_t along_columns(int step) const {
    return descriptor(data + step / 2 * kBlock + step % 2 * 32, 16);
  }
  /// Rows are k, columns n (of B): rows [16 step, 16 step + 16), all columns.
  __device__ std::uint64_t along_rows(int step) const { return descriptor(data + step * 16 * 64, kBlock); }

  // Rows and columns of these are multiples of 16, so a lane's address is one number and constants.

  /// A = X[row.., column..]^T of mma.m16n8k16, as Tile::load_a_transposed.
  __device__ void load_a_transposed(std::uint32_t (&a)[4], int row, int column) const {
    const unsigned lane = threadIdx.x % 32;
    const char* const from = at(lane % 8 + lane / 16 * 8, column + lane / 8 % 2 * 8) + row * 64;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(shared_address(from))
                 : "memory");
  }
  /// A warp's 16 rows of accumulators, rounded.
  __device__ void put(int row, const float (&d)[kColumns / 8][4]) const {
    const unsigned lane = threadIdx.x % 32;
    const std::uint32_t first = shared_address(at(lane % 16, lane / 16 * 8) + row * 64), second = first ^ 32;
#pragma unroll
    for (int j = 0; j < kColumns / 8; j += 2)
      store_matrices((j % 4 ? second : first) + j / 4 * kBlock, pack(d[j][0], d[j][1]),
                     pack(d[j][2], d[j][3]), pack(d[j + 1][0], d[j + 1][1]), pack(d[j + 1][2], d[j + 1][3]));
  }

 private:
  /// `leading`: bytes from 32 columns to the next where they are n; 8 rows are 512 bytes.
  __device__ static std::uint64_t descriptor(const char* start, int leading) {
    constexpr std::uint64_t kSwizzle64 = std::uint64_t{2} << 62;
    return kSwizzle64 | std::uint64_t{512 >> 4} << 32 | static_cast<std::uint64_t>(leading >> 4) << 16 |
           static_cast<std::uint64_t>((shared_address(start) & 0x3ffff) >> 4);
  }
};

/// Accumulators of a warp: rows 16 warp + g and + 8, columns 8 tile + 2c.. as in mma.m16n8k16.
template <int kColumns>
using WarpgroupTile = float[kColumns / 8][4];

/// The compiler must not move uses of these registers across.
template <int kTiles>
__device__ void hold(float (&d)[kTiles][4]) {
#pragma unroll
  for (auto& tile : d)
#pragma unroll
    for (float& x : tile) asm volatile("" : "+f"(x)::"memory");
}

// d = A B (+ d if `add`), A (64, 16) by a descriptor or, in registers, as of mma.m16n8k16 for each warp; B by
// a descriptor, along_rows() where kAlongRows, else along_columns().

/// Registers and shared memory that were written are ready for the products that follow.
__device__ inline void warpgroup_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Until at most `kPending` groups of products are under way.
template <int kPending>
__device__ void warpgroup_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
/// What this thread wrote to shared memory (or copied there) is seen by the unit after the next barrier.
__device__ inline void fence_shared_for_unit() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
/// For all warps of a warpgroup: from 128 registers a thread, what a kernel has of which two blocks of 256
/// threads fill a processor, to so many, a multiple of 8. What some give others take.
template <int kRegisters>
__device__ void set_registers() {
  if constexpr (kRegisters < 128)
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
  else
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
#define TRANSMAMBA_D4(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define TRANSMAMBA_D16(i) TRANSMAMBA_D4(i), TRANSMAMBA_D4(i + 1), TRANSMAMBA_D4(i + 2), TRANSMAMBA_D4(i + 3)

template <bool kAlongRows>
__device__ void warpgroup_multiply(float (&d)[8][4], std::uint64_t a, std::uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
      "}, %32, %33, p, 1, 1, 0, %35;\n}\n"
      : TRANSMAMBA_D16(0), TRANSMAMBA_D16(4)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(kAlongRows ? 1 : 0));
}
template <bool kAlongRows>
__device__ void warpgroup_multiply(float (&d)[8][4], const std::uint32_t (&a)[4], std::uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
      "}, {%32,%33,%34,%35}, %36, p, 1, 1, %38;\n}\n"
      : TRANSMAMBA_D16(0), TRANSMAMBA_D16(4)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),
        "n"(kAlongRows ? 1 : 0));
}
template <bool kAlongRows>
__device__ void warpgroup_multiply(float (&d)[12][4], std::uint64_t a, std::uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %50, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
      "}, %48, %49, p, 1, 1, 0, %51;\n}\n"
      : TRANSMAMBA_D16(0), TRANSMAMBA_D16(4), TRANSMAMBA_D16(8)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(kAlongRows ? 1 : 0));
}
template <bool kAlongRows>
__device__ void warpgroup_multiply(float (&d)[12][4], const std::uint32_t (&a)[4], std::uint64_t b,
                                   bool add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %53, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
      "}, {%48,%49,%50,%51}, %52, p, 1, 1, %54;\n}\n"
      : TRANSMAMBA_D16(0), TRANSMAMBA_D16(4), TRANSMAMBA_D16(8)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),
        "n"(kAlongRows ? 1 : 0));
}
template <bool kAlongRows>
__device__ void warpgroup_multiply(float (&d)[16][4], std::uint64_t a, std::uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
      "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
      "}, %64, %65, p, 1, 1, 0, %67;\n}\n"
      : TRANSMAMBA_D16(0), TRANSMAMBA_D16(4), TRANSMAMBA_D16(8), TRANSMAMBA_D16(12)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(kAlongRows ? 1 : 0));
}
template <bool kAlongRows>
__device__ void warpgroup_multiply(float (&d)[16][4], const std::uint32_t (&a)[4], std::uint64_t b,
                                   bool add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
      "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
      "}, {%64,%65,%66,%67}, %68, p, 1, 1, %70;\n}\n"
      : TRANSMAMBA_D16(0), TRANSMAMBA_D16(4), TRANSMAMBA_D16(8), TRANSMAMBA_D16(12)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),
        "n"(kAlongRows ? 1 : 0));
}

#undef TRANSMAMBA_D4
#undef TRANSMAMBA_D16

}  // namespace transmamba::cuda
