#include "kernels/step_size.h"

#include "kernels/cuda/partials.cuh"

namespace transmamba::cuda {
namespace {

// Step sizes are small (1e-3 is usual): log1p and expm1 keep their relative accuracy near zero.

template <class T>
__global__ void forward(Strided<const T> raw, const T* bias, Strided<T> dt, std::int64_t t, std::int64_t h,
                        std::int64_t size) {
  const std::int64_t index = global_index();
  if (index >= size) return;
  const std::int64_t i = index / h / t, j = index / h % t, k = index % h;
  const T x = raw(i, j)[k] + bias[k];
  dt(i, j)[k] = (x < 0 ? T(0) : x) + log1p(exp(-abs(x)));
}

/// A block a run of tokens; a thread owns heads.
template <class T>
__global__ void backward(Strided<const T> ddt, Strided<const T> dt, Strided<T> draw, double* dbias, Runs runs,
                         std::int64_t t, std::int64_t h) {
  for (std::int64_t k = threadIdx.x; k < h; k += blockDim.x) {
    double sum = 0;
    for (std::int64_t token = runs.begin(blockIdx.x); token < runs.end(blockIdx.x); ++token) {
      const std::int64_t i = token / t, j = token % t;
      const T d = ddt(i, j)[k] * -expm1(-dt(i, j)[k]);
      draw(i, j)[k] = d;
      sum += static_cast<double>(d);
    }
    dbias[blockIdx.x * h + k] = sum;
  }
}

}  // namespace

void step_size(const StepSize& a, const Stream& stream) {
  dispatch_float(a.raw.dtype(), "step_size", [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t size = a.raw.numel();
    if (size == 0) return;
    launch("step_size", stream, thread_each(size), forward<T>, strided<const T>(a.raw), a.bias.ptr<T>(),
           strided<T>(a.dt), a.raw.dim(1), a.raw.dim(2), size);
  });
}

void step_size_backward(const StepSizeBackward& a, const Stream& stream) {
  constexpr auto op = "step_size_backward";
  dispatch_float(a.dt.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t t = a.dt.dim(1), h = a.dt.dim(2);
    const Runs runs(a.dt.dim(0) * t);
    if (a.dt.numel() == 0) return;
    const Workspace<double> sums(runs.count * h, stream, op);
    launch(op, stream, {runs.count, h <= 32 ? 32 : kThreads}, backward<T>, strided<const T>(a.ddt),
           strided<const T>(a.dt), strided<T>(a.draw), sums.data(), runs, t, h);
    launch(op, stream, thread_each(h), add_partials<T>, sums.data(), runs.count, h, strided<T>(a.dbias), 1,
           h);
  });
}

}  // namespace transmamba::cuda
