// Hopper's copies of whole boxes (PTX ISA, "Asynchronous tensor copies"): one thread starts a copy, the
// copying unit computes addresses, fills with zeros what is outside of the tensor, swizzles, and counts the
// bytes that have arrived at a barrier in shared memory. Needs sm_90.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/cuda/tensor_core.cuh"
#include "kernels/types.h"

namespace transmamba::cuda {

/// For boxes of `rows` tokens and 32 columns of one head of a view (b, t, h, width) of bfloat16, laid out as
/// Swizzled. Rows begin at multiples of 16 bytes. No extent is 0.
CUtensorMap tensor_map(const ConstView& x, int rows, std::string_view op, std::string_view name);

/// Counts the bytes of one round of copies after the other, the first of which is round 0.
class Arrival {
 public:
  /// By one thread, and a barrier of all before they wait.
  __device__ void start() {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address()) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  /// By the thread that then starts a round's copies.
  __device__ void expect(int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address()), "r"(bytes)
                 : "memory");
  }
  __device__ void wait(int round) {
    asm volatile(
        "{\n.reg .pred p;\n"
        "again:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra again;\n}\n" ::"r"(address()),
        "r"(round % 2)
        : "memory");
  }
  __device__ std::uint32_t address() const { return shared_address(&bits_); }

 private:
  std::uint64_t bits_;
};

/// Starts the copy of the box of head h from token t, column 32 block, to `to`.
__device__ inline void copy_box(char* to, const CUtensorMap& map, int block, int h, int t, int b,
                                const Arrival& arrival) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(shared_address(to)),
      "l"(&map), "r"(32 * block), "r"(h), "r"(t), "r"(b), "r"(arrival.address())
      : "memory");
}

}  // namespace transmamba::cuda
