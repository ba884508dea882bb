// The scan's gradients in bfloat16, in two walks over each piece (see kernels/cuda/ssd_bf16.cuh for the
// notation).
//
// With H_t the gradient of the state after token t, H the one after a chunk and S the state before it,
// P = Q K^T and R = dY V^T:
//   backwards, with H in registers  dV = dt o ((P o E)^T dY + exp(cum_63 - cum) K H) + D dY
//                                   dK = dt o ((R o E)^T Q  + exp(cum_63 - cum) V H^T)
//                                   H <- exp(cum_63) H + (exp(cum) Q)^T dY
//   forwards, with S in registers   dQ = (R o E o dt_s) K + exp(cum) dY S^T
// The decays: with a_r = A dt_r, X_ts = P_ts R_ts E_ts dt_s, u_t = exp(cum_t) q_t . S dy_t, and
// w_s = dt_s exp(cum_63 - cum_s) k_s . H v_s,
//   da_r = sum_{t >= r > s} X_ts + sum_{t >= r} u_t + sum_{s < r} w_s + exp(cum_63) <H, S>
//   ddt_r = A da_r + k_r . H_r v_r
// The first and third sums come from the first walk, in float32 and from one X, so that nothing large
// cancels; the second from the other. <H, S> is exact at each piece's start, and passes from chunk to chunk
// by <H, S'> = exp(cum_63) <H, S> + sum_s w_s  and  <H', S> = exp(cum_63) <H, S> + sum_t u_t.
#pragma once

#include "kernels/cuda/ssd_bf16.cuh"

namespace transmamba::cuda::ssd {

/// What the first walk leaves for the second, (b h, tokens of whole chunks) or (b h, chunks).
struct Between {
  float* da;        // the first and third sum of da
  float* product;   // k_r . H_r v_r
  float* chunk_w;   // sum of w_s
  float* gradient;  // (b h, pieces, n, p) H before each piece
};

/// Sums over a piece, (b h, pieces).
struct PieceSums {
  float *da_log, *dd_skip;
};

struct BackwardArguments {
  InRows q, k, v, dy;
  OutRows dq, dk, dv;
  Strided<const float> dt;
  const float *a_log, *d_skip;
  Strided<float> ddt, dstate_in;
  Summaries entering, leaving;  // states that enter pieces, and gradients of those that leave them
  Between between;
  PieceSums sums;
  Cut cut;
};

void enqueue_keys(const BackwardArguments& a, std::int64_t n, std::int64_t p, const Stream& stream);
void enqueue_queries(const BackwardArguments& a, std::int64_t n, std::int64_t p, const Stream& stream);

/// Inclusive sums over the 64 tokens of a chunk, two a lane of one warp; from the end where `kFromEnd`.
template <bool kFromEnd>
__device__ float2 running_sums(float2 x) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float sum = x.x + x.y;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const float other =
        kFromEnd ? __shfl_down_sync(0xffffffffu, sum, distance) : __shfl_up_sync(0xffffffffu, sum, distance);
    if (kFromEnd ? lane + distance < kWarp : lane >= distance) sum += other;
  }
  return kFromEnd ? float2{sum, sum - x.x} : float2{sum - x.y, sum};
}

}  // namespace transmamba::cuda::ssd
