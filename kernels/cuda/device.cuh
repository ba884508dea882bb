// What every kernel here shares: launching, workspace, views and reductions on the device. The stream's
// device is the calling thread's current one. Nothing here waits for the GPU.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <limits>
#include <string_view>
#include <type_traits>

#include "kernels/dispatch.h"

namespace transmamba::cuda {

/// A function of the driver, as of a version of CUDA (12000 is 12.0). Linking the driver's library would make
/// binaries that do not start where there is no driver.
void* find_in_driver(const char* name, unsigned version);

/// Throws where this build or the current GPU has no warpgroup products: both must be Hopper's.
void check_hopper(std::string_view op);

inline void check_cuda(cudaError_t result, std::string_view op) {
  if (result == cudaSuccess) return;
  cudaGetLastError();  // or the next launch would report this one again
  fail(op, "CUDA: {}: {}", cudaGetErrorName(result), cudaGetErrorString(result));
}

inline cudaStream_t handle_of(const Stream& stream) { return static_cast<cudaStream_t>(stream.handle); }

/// Calls f(T{}) with the C++ type of a dtype, for kernels that have no bfloat16.
template <class F>
void dispatch_float(DType dtype, std::string_view op, F&& f) {
  if (dtype == DType::f32) return f(float{});
  if (dtype == DType::f64) return f(double{});
  fail(op, "element type: expected float32 or float64 of this kernel on a GPU, got {}", dtype);
}

// ---- Launching ----

constexpr int kWarp = 32;
constexpr int kThreads = 256;

/// A grid of blocks x rows; `shared` is bytes of dynamic shared memory a block.
struct Grid {
  std::int64_t blocks = 0;
  int threads = kThreads;
  std::size_t shared = 0;
  std::int64_t rows = 1;  // at most 65535
};
/// A thread an item.
inline Grid thread_each(std::int64_t items) { return {(items + kThreads - 1) / kThreads}; }

/// Enqueues kernel(arguments...); no blocks are no work.
template <class... Parameters, class... Arguments>
void launch(std::string_view op, const Stream& stream, const Grid& grid, void (*kernel)(Parameters...),
            const Arguments&... arguments) {
  constexpr std::size_t kWithoutAsking = 40 * 1024;  // 48, less what kernels have beside it
  if (grid.blocks == 0) return;
  check(grid.blocks <= std::numeric_limits<int>::max(), op, "grid: {} blocks are more than CUDA can count",
        grid.blocks);
  if (grid.shared > kWithoutAsking) {
    const cudaError_t result = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                    static_cast<int>(grid.shared));
    cudaGetLastError();  // or the next launch would report this one again
    check(result == cudaSuccess, op,
          "these widths need {} bytes of shared memory a block, and this GPU has less", grid.shared);
  }
  const dim3 blocks(static_cast<unsigned>(grid.blocks), static_cast<unsigned>(grid.rows));
  kernel<<<blocks, static_cast<unsigned>(grid.threads), grid.shared, handle_of(stream)>>>(arguments...);
  check_cuda(cudaGetLastError(), op);
}

/// Memory that is taken and given back in the order of the stream: Stream::scratch, or else the driver's.
template <class T>
class Workspace {
 public:
  Workspace(std::int64_t size, const Stream& stream, std::string_view op)
      : stream_(handle_of(stream)), scratch_(stream.scratch) {
    if (size <= 0) return;
    const std::int64_t bytes = size * static_cast<std::int64_t>(sizeof(T));
    if (scratch_)
      data_ = reinterpret_cast<T*>(scratch_->take(bytes));
    else
      check_cuda(cudaMallocAsync(reinterpret_cast<void**>(&data_), static_cast<std::size_t>(bytes), stream_),
                 op);
  }
  ~Workspace() {
    if (data_ && scratch_)
      scratch_->give_back(reinterpret_cast<std::byte*>(data_));
    else if (data_)
      cudaFreeAsync(data_, stream_);
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  T* data() const { return data_; }

 private:
  T* data_ = nullptr;
  cudaStream_t stream_;
  Scratch* scratch_;
};

// ---- On the device ----

__device__ inline std::int64_t global_index() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

/// A view as a kernel takes it: x(i, j) is the address of element (or row) (i, j). Absent views are null.
template <class T>
struct Strided {
  T* data = nullptr;
  std::int64_t stride[Shape::kMaxDims] = {};

  template <class... I>
  __device__ T* operator()(I... index) const {
    std::int64_t offset = 0;
    int i = 0;
    ((offset += static_cast<std::int64_t>(index) * stride[i++]), ...);
    return data + offset;
  }
};
template <class T, class Byte>
Strided<T> strided(const BasicView<Byte>& view) {
  Strided<T> out;
  if (!view) return out;
  out.data = view.template ptr<std::remove_const_t<T>>();
  for (int i = 0; i < view.rank(); ++i) out.stride[i] = view.stride(i);
  return out;
}

template <class T>
__device__ T not_a_number() {
  return static_cast<T>(nan(""));
}
template <class T>
__device__ T sigmoid(T x) {
  return T(1) / (T(1) + exp(-x));
}
/// d SiLU(x) / dx.
template <class T>
__device__ T silu_gradient(T x) {
  const T s = sigmoid(x);
  return s * (T(1) + x * (T(1) - s));
}

// Reductions have a fixed order, and every thread gets the result.

struct Plus {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Larger {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return b > a ? b : a;
  }
};

template <class Op, class T>
__device__ T warp_reduce(T x) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    x = Op{}(x, __shfl_xor_sync(0xffffffffu, x, distance));
  return x;
}
/// Blocks are whole warps.
template <class Op, class T>
__device__ T block_reduce(T x) {
  __shared__ T warps[kWarp];
  x = warp_reduce<Op>(x);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = x;
  __syncthreads();
  x = warps[0];
  for (unsigned i = 1; i < blockDim.x / kWarp; ++i) x = Op{}(x, warps[i]);
  __syncthreads();  // the next reduction writes again
  return x;
}

}  // namespace transmamba::cuda
