#include "kernels/step_size.h"

#include "kernels/cuda/partials.cuh"
#include "kernels/cuda/vectors.cuh"

namespace transmamba::cuda {
namespace {

// Step sizes are small (1e-3 is usual): log1p and expm1 keep their relative accuracy near zero.

template <class T, class S = Compute<T>>
__global__ void forward(Strided<const T> raw, const S* bias, Strided<S> dt, std::int64_t t, std::int64_t h,
                        std::int64_t size) {
  const std::int64_t index = global_index();
  if (index >= size) return;
  const std::int64_t i = index / h / t, j = index / h % t, k = index % h;
  const S x = load(raw(i, j) + k) + bias[k];
  dt(i, j)[k] = (x < 0 ? S(0) : x) + log1p(exp(-abs(x)));
}

/// A block a run of tokens. A row of threads owns heads and every so many tokens of the run.
template <class T, class S = Compute<T>>
__global__ void backward(Strided<const S> ddt, Strided<const S> dt, Strided<T> draw, double* dbias, Runs runs,
                         std::int64_t t, std::int64_t h, int width) {
  __shared__ double sums[kThreads];
  const int column = static_cast<int>(threadIdx.x) % width, row = static_cast<int>(threadIdx.x) / width;
  const int rows = kThreads / width;
  for (std::int64_t first = 0; first < h; first += width) {
    const std::int64_t k = first + column;
    double sum = 0;
    for (std::int64_t token = runs.begin(blockIdx.x) + row; token < runs.end(blockIdx.x) && k < h;
         token += rows) {
      const std::int64_t i = token / t, j = token % t;
      const S d = ddt(i, j)[k] * -expm1(-dt(i, j)[k]);
      store(draw(i, j) + k, d);
      sum += static_cast<double>(d);
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (row == 0 && k < h) {
      for (int other = 1; other < rows; ++other) sum += sums[other * width + column];
      dbias[blockIdx.x * h + k] = sum;
    }
    __syncthreads();
  }
}

}  // namespace

void step_size(const StepSize& a, const Stream& stream) {
  dispatch_storage(a.raw.dtype(), "step_size", [&](auto zero) {
    using T = decltype(zero);
    using S = Compute<T>;
    const std::int64_t size = a.raw.numel();
    if (size == 0) return;
    launch("step_size", stream, thread_each(size), forward<T>, strided<const T>(a.raw), a.bias.ptr<S>(),
           strided<S>(a.dt), a.raw.dim(1), a.raw.dim(2), size);
  });
}

void step_size_backward(const StepSizeBackward& a, const Stream& stream) {
  constexpr auto op = "step_size_backward";
  dispatch_storage(a.draw.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    using S = Compute<T>;
    const std::int64_t t = a.dt.dim(1), h = a.dt.dim(2);
    const Runs runs(a.dt.dim(0) * t);
    if (a.dt.numel() == 0) return;
    int width = 1;
    while (width < h && width < kThreads) width *= 2;
    const Workspace<double> sums(runs.count * h, stream, op);
    launch(op, stream, {runs.count}, backward<T>, strided<const S>(a.ddt), strided<const S>(a.dt),
           strided<T>(a.draw), sums.data(), runs, t, h, width);
    launch_add_partials<double, S>(op, stream, sums.data(), runs.count, h, {a.dbias.ptr<S>(), h, h, 0, 1});
  });
}

}  // namespace transmamba::cuda
