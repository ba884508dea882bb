#include "kernels/rope.h"

#include "kernels/cuda/device.cuh"

namespace transmamba::cuda {
namespace {

/// A block a position: its angles, in float64, serve all heads of all sequences. y may alias x.
template <class T>
__global__ void rotate(Strided<const T> x, Strided<T> y, std::int64_t b, std::int64_t h, std::int64_t half,
                       std::int64_t position, double theta, bool inverse) {
  extern __shared__ double angles[];
  T* const cosine = reinterpret_cast<T*>(angles);
  T* const sine = cosine + half;
  const std::int64_t j = blockIdx.x;
  for (std::int64_t k = threadIdx.x; k < half; k += blockDim.x) {
    double s, c;
    sincos(
        static_cast<double>(position + j) * pow(theta, -static_cast<double>(k) / static_cast<double>(half)),
        &s, &c);
    cosine[k] = static_cast<T>(c);
    sine[k] = static_cast<T>(inverse ? -s : s);
  }
  __syncthreads();
  for (std::int64_t item = threadIdx.x; item < b * h * half; item += blockDim.x) {
    const std::int64_t i = item / half / h, head = item / half % h, k = item % half;
    const T u = x(i, j, head)[k], v = x(i, j, head)[k + half];
    y(i, j, head)[k] = u * cosine[k] - v * sine[k];
    y(i, j, head)[k + half] = v * cosine[k] + u * sine[k];
  }
}

}  // namespace

void rope(const Rope& a, const Stream& stream) {
  dispatch_float(a.x.dtype(), "rope", [&](auto zero) {
    using T = decltype(zero);
    if (a.x.numel() == 0) return;
    const std::int64_t half = a.x.dim(3) / 2;
    launch("rope", stream, {a.x.dim(1), kThreads, static_cast<std::size_t>(2 * half) * sizeof(T)}, rotate<T>,
           strided<const T>(a.x), strided<T>(a.y), a.x.dim(0), a.x.dim(2), half, a.position, a.theta,
           a.inverse);
  });
}

}  // namespace transmamba::cuda
