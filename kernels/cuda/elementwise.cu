#include "kernels/elementwise.h"

#include "kernels/cuda/device.cuh"

namespace transmamba::cuda {
namespace {

/// Every element of two views of one shape. Dims that lie one after the other in memory in both are joined,
/// so that contiguous views need no division.
struct Walk {
  int rank = 1;
  std::int64_t extent[Shape::kMaxDims] = {1}, x[Shape::kMaxDims] = {}, y[Shape::kMaxDims] = {};
  std::int64_t size = 1;

  Walk(const ConstView& from, const ConstView& to) : size(from.numel()) {
    for (int i = 0; i < from.rank(); ++i) {
      if (from.dim(i) == 1) continue;
      int last = rank - 1;
      const bool joined = x[last] == from.dim(i) * from.stride(i) && y[last] == to.dim(i) * to.stride(i);
      if (!joined && extent[last] != 1) extent[last = rank++] = 1;
      extent[last] *= from.dim(i), x[last] = from.stride(i), y[last] = to.stride(i);
    }
  }
  __device__ void locate(std::int64_t i, std::int64_t& in_x, std::int64_t& in_y) const {
    in_x = in_y = 0;
    for (int d = rank - 1; d > 0; i /= extent[d--])
      in_x += i % extent[d] * x[d], in_y += i % extent[d] * y[d];
    in_x += i * x[0], in_y += i * y[0];
  }
};

template <class T>
struct Set {
  T value;
  __device__ void operator()(const T*, T* y) const { *y = value; }
};
template <class T>
struct Assign {
  __device__ void operator()(const T* x, T* y) const { *y = *x; }
};
template <class T>
struct Increase {
  __device__ void operator()(const T* x, T* y) const { *y += *x; }
};

template <class T, class F>
__global__ void for_each(Walk walk, F f, const T* x, T* y) {
  const std::int64_t i = global_index();
  if (i >= walk.size) return;
  std::int64_t in_x, in_y;
  walk.locate(i, in_x, in_y);
  f(x + in_x, y + in_y);
}

template <class T, class F>
void run(std::string_view op, const ConstView& x, const View& y, F f, const Stream& stream) {
  const Walk walk(x, y);
  if (walk.size > 0)
    launch(op, stream, thread_each(walk.size), for_each<T, F>, walk, f, x.ptr<T>(), y.ptr<T>());
}

constexpr std::int64_t kSumBlock = 16384;

template <class T>
__global__ void sum_blocks(const T* x, bool squares, std::int64_t n, double* sums) {
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * kSumBlock,
                     end = min(n, begin + kSumBlock);
  double sum = 0;
  for (std::int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
    const double value = static_cast<double>(x[i]);
    sum += squares ? value * value : value;
  }
  sum = block_reduce<Plus>(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

__global__ void add_sums(const double* sums, std::int64_t n, double* result) {
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += sums[i];
  sum = block_reduce<Plus>(sum);
  if (threadIdx.x == 0) *result += sum;
}

}  // namespace

void fill(const Fill& a, const Stream& stream) {
  dispatch_float(a.y.dtype(), "fill", [&](auto zero) {
    using T = decltype(zero);
    run<T>("fill", a.y, a.y, Set<T>{static_cast<T>(a.value)}, stream);
  });
}

void copy(const Copy& a, const Stream& stream) {
  dispatch_float(a.x.dtype(), "copy", [&](auto zero) {
    using T = decltype(zero);
    run<T>("copy", a.x, a.y, Assign<T>{}, stream);
  });
}

void add(const Add& a, const Stream& stream) {
  dispatch_float(a.x.dtype(), "add", [&](auto zero) {
    using T = decltype(zero);
    run<T>("add", a.x, a.y, Increase<T>{}, stream);
  });
}

void sum(const Sum& a, const Stream& stream) {
  dispatch_float(a.x.dtype(), "sum", [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t n = a.x.numel(), blocks = (n + kSumBlock - 1) / kSumBlock;
    if (n == 0) return;
    const Workspace<double> sums(blocks, stream, "sum");
    launch("sum", stream, {blocks}, sum_blocks<T>, a.x.ptr<T>(), a.squares, n, sums.data());
    launch("sum", stream, {1}, add_sums, sums.data(), blocks, a.result.ptr<double>());
  });
}

}  // namespace transmamba::cuda
