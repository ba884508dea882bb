#include "kernels/gemm.h"

#include <cublas_v2.h>
#include <cuda_bf16.h>

#include <algorithm>
#include <map>
#include <utility>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm_bf16.cuh"
#include "kernels/elementwise.h"

namespace transmamba::cuda {
namespace {

void check_cublas(cublasStatus_t status) {
  if (status != CUBLAS_STATUS_SUCCESS) fail("gemm", "cuBLAS: {}", cublasGetStatusString(status));
}

/// A handle of the calling thread for each device and stream: cuBLAS gives the same bits every time only
/// where streams that run at the same time do not share one.
class Handles {
 public:
  Handles() = default;
  Handles(const Handles&) = delete;
  Handles& operator=(const Handles&) = delete;
  ~Handles() {
    for (const auto& [key, handle] : handles_) cublasDestroy(handle);
  }
  cublasHandle_t get(const Stream& stream) {
    int device = 0;
    check_cuda(cudaGetDevice(&device), "gemm");
    cublasHandle_t& handle = handles_[{device, stream.handle}];
    if (!handle) {
      check_cublas(cublasCreate(&handle));
      check_cublas(cublasSetStream(handle, handle_of(stream)));
      // float32 means float32, whatever the environment asks for: never TF32.
      check_cublas(cublasSetMathMode(handle, CUBLAS_PEDANTIC_MATH));
    }
    return handle;
  }

 private:
  std::map<std::pair<int, void*>, cublasHandle_t> handles_;
};

__device__ float scaled(float x, double beta) { return static_cast<float>(beta) * x; }
__device__ double scaled(double x, double beta) { return beta * x; }
__device__ bfloat16 scaled(bfloat16 x, double beta) {
  const float value = static_cast<float>(beta) * __uint_as_float(static_cast<unsigned>(x.bits) << 16);
  return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
}

template <class T>
__global__ void scale(Strided<const T> d, Strided<T> c, std::int64_t n, std::int64_t size, double beta) {
  const std::int64_t i = global_index();
  if (i < size) c(i / n)[i % n] = beta == 0 ? T{} : scaled(d(i / n)[i % n], beta);
}
/// C = beta D: no terms to sum.
template <class T>
void scale_addend(const Gemm& g, const Stream& stream) {
  const std::int64_t n = g.c.dim(1), size = g.c.numel();
  const ConstView d = g.addend ? g.addend : ConstView(g.c);
  launch("gemm", stream, thread_each(size), scale<T>, strided<const T>(d), strided<T>(g.c), n, size, g.beta);
}

/// By cuBLAS, which adds in place.
template <class T>
void multiply(const Gemm& g, const Stream& stream) {
  const std::int64_t m = g.c.dim(0), n = g.c.dim(1), k = g.a.dim(g.transpose_a ? 0 : 1);
  const T one = 1, beta = static_cast<T>(g.beta);
  if (g.addend && g.beta != 0 && g.addend.raw() != g.c.raw()) cuda::copy({g.addend, g.c}, stream);
  thread_local Handles handles;
  // cuBLAS reads a row-major matrix as its transpose: C^T = op(B)^T op(A)^T.
  const auto call = [&](auto function) {
    check_cublas(function(handles.get(stream), g.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N,
                          g.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N, n, m, k, &one, g.b.ptr<T>(),
                          leading(g.b), g.a.ptr<T>(), leading(g.a), &beta, g.c.ptr<T>(), leading(g.c)));
  };
  if constexpr (std::is_same_v<T, float>)
    call(cublasSgemm_64);
  else
    call(cublasDgemm_64);
}

}  // namespace

void gemm(const Gemm& g, const Stream& stream) {
  if (g.c.numel() == 0) return;
  const bool empty = g.a.numel() == 0;
  const DType dtype = g.c.dtype();
  if (empty && dtype == DType::bf16) return scale_addend<bfloat16>(g, stream);
  if (!empty && g.a.dtype() == DType::bf16) return gemm_bf16(g, stream);
  dispatch_float(dtype, "gemm", [&](auto zero) {
    using T = decltype(zero);
    empty ? scale_addend<T>(g, stream) : multiply<T>(g, stream);
  });
}

}  // namespace transmamba::cuda
