#include "kernels/gemm.h"

#include <cublas_v2.h>

#include <algorithm>
#include <map>
#include <utility>

#include "kernels/cuda/device.cuh"

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

template <class T>
__global__ void scale(Strided<T> c, std::int64_t n, std::int64_t size, T beta) {
  const std::int64_t i = global_index();
  if (i >= size) return;
  T& value = c(i / n)[i % n];
  value = beta == T(0) ? T(0) : beta * value;
}

/// A leading dimension as BLAS wants it; the stride of a single row means nothing.
std::int64_t leading(const ConstView& x) {
  return x.dim(0) > 1 ? x.stride(0) : std::max<std::int64_t>(1, x.dim(1));
}

template <class T>
void run(const Gemm& g, const Stream& stream) {
  const std::int64_t m = g.c.dim(0), n = g.c.dim(1), k = g.a.dim(g.transpose_a ? 0 : 1);
  const T one = 1, beta = static_cast<T>(g.beta);
  if (m == 0 || n == 0) return;
  if (k == 0) return launch("gemm", stream, thread_each(m * n), scale<T>, strided<T>(g.c), n, m * n, beta);
  thread_local Handles handles;
  // cuBLAS reads a row-major matrix as its transpose: C^T = op(B)^T op(A)^T.
  const auto multiply = [&](auto function) {
    check_cublas(function(handles.get(stream), g.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N,
                          g.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N, n, m, k, &one, g.b.ptr<T>(),
                          leading(g.b), g.a.ptr<T>(), leading(g.a), &beta, g.c.ptr<T>(), leading(g.c)));
  };
  if constexpr (std::is_same_v<T, float>)
    multiply(cublasSgemm_64);
  else
    multiply(cublasDgemm_64);
}

}  // namespace

void gemm(const Gemm& arguments, const Stream& stream) {
  dispatch_float(arguments.c.dtype(), "gemm", [&](auto zero) { run<decltype(zero)>(arguments, stream); });
}

}  // namespace transmamba::cuda
