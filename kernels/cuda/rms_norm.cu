#include "kernels/rms_norm.h"

#include "kernels/cuda/partials.cuh"
#include "kernels/cuda/rms_norm.cuh"
#include "kernels/cuda/vectors.cuh"

namespace transmamba::cuda {
namespace {

/// Rows are short (a head) or long (a hidden state): as many warps as there is work for.
int threads_for(std::int64_t d) {
  return d >= kThreads ? kThreads : static_cast<int>((d + kWarp - 1) / kWarp) * kWarp;
}

/// A block a row (i, j, g). Each element is read and written by one thread: y may alias x.
template <class T, class S = Compute<T>>
__global__ void forward(Strided<const T> x, Strided<const T> gate, Strided<const S> weight, Strided<T> y,
                        double eps, std::int64_t t, std::int64_t groups, std::int64_t d) {
  const std::int64_t g = blockIdx.x % groups, j = blockIdx.x / groups % t, i = blockIdx.x / groups / t;
  const auto value = [&](std::int64_t k) {
    const S v = load(x(i, j, g) + k);
    if (!gate.data) return v;
    const S z = load(gate(i, j, g) + k);
    return v * (z * sigmoid_for<T>(z));
  };
  S sum = 0;
  for (std::int64_t k = threadIdx.x; k < d; k += blockDim.x) sum += value(k) * value(k);
  sum = block_reduce<Plus>(sum);
  const S rstd = S(1) / sqrt(sum / static_cast<S>(d) + static_cast<S>(eps));
  for (std::int64_t k = threadIdx.x; k < d; k += blockDim.x)
    store(y(i, j, g) + k, value(k) * rstd * weight(g)[k]);
}

template <class T>
struct Backward {
  Strided<const T> dy, x, gate;
  Strided<const Compute<T>> weight;
  Strided<const T> dresidual;
  Strided<T> dx, dgate;
  double eps;
  std::int64_t t, groups, d;
};

/// A block a run of tokens of one group; a thread owns elements of a row, so dx may alias what is read.
/// With v' = v rstd and u = dy weight:  dv = rstd (u - v' mean(u v')), in float64 (see the contract).
template <class T>
__global__ void backward(Backward<T> a, double* dweight, Runs runs) {
  const std::int64_t g = blockIdx.x % a.groups, run = blockIdx.x / a.groups, d = a.d;
  double* const sums = dweight + blockIdx.x * d;  // (run, g, d)
  for (std::int64_t k = threadIdx.x; k < d; k += blockDim.x) sums[k] = 0;
  for (std::int64_t token = runs.begin(run); token < runs.end(run); ++token) {
    const std::int64_t i = token / a.t, j = token % a.t;
    const auto z = [&](std::int64_t k) { return static_cast<double>(load(a.gate(i, j, g) + k)); };
    const auto silu = [&](std::int64_t k) { return a.gate.data ? z(k) * sigmoid(z(k)) : 1.0; };
    const auto x = [&](std::int64_t k) { return static_cast<double>(load(a.x(i, j, g) + k)); };
    const auto dy = [&](std::int64_t k) { return static_cast<double>(load(a.dy(i, j, g) + k)); };
    const auto weight = [&](std::int64_t k) { return static_cast<double>(a.weight(g)[k]); };
    double squares = 0, dot = 0;
    for (std::int64_t k = threadIdx.x; k < d; k += blockDim.x) {
      const double v = x(k) * silu(k);
      squares += v * v;
      dot += dy(k) * weight(k) * v;
    }
    squares = block_reduce<Plus>(squares);
    dot = block_reduce<Plus>(dot);
    const double rstd = 1 / sqrt(squares / static_cast<double>(d) + a.eps);
    const double mean = dot * rstd / static_cast<double>(d);
    for (std::int64_t k = threadIdx.x; k < d; k += blockDim.x) {
      const double activation = silu(k), value = x(k), dyk = dy(k), normed = value * activation * rstd;
      const double dv = rstd * (dyk * weight(k) - normed * mean);
      const double residual = a.dresidual.data ? static_cast<double>(load(a.dresidual(i, j, g) + k)) : 0.0;
      sums[k] += dyk * normed;
      if (a.gate.data) store(a.dgate(i, j, g) + k, static_cast<Compute<T>>(dv * value * silu_gradient(z(k))));
      store(a.dx(i, j, g) + k, static_cast<Compute<T>>(dv * activation + residual));
    }
  }
}

}  // namespace

void rms_norm(const RmsNorm& a, const Stream& stream) {
  dispatch_storage(a.x.dtype(), "rms_norm", [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t t = a.x.dim(1), groups = a.x.dim(2), d = a.x.dim(3);
    if (a.x.numel() == 0) return;
    if (std::is_same_v<T, bfloat16> && rms_norm_rows(a, stream)) return;
    launch("rms_norm", stream, {a.x.dim(0) * t * groups, threads_for(d)}, forward<T>, strided<const T>(a.x),
           strided<const T>(a.gate), strided<const Compute<T>>(a.weight), strided<T>(a.y), a.eps, t, groups,
           d);
  });
}

void rms_norm_backward(const RmsNormBackward& a, const Stream& stream) {
  constexpr auto op = "rms_norm_backward";
  dispatch_storage(a.x.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t t = a.x.dim(1), groups = a.x.dim(2), d = a.x.dim(3);
    if (a.x.numel() == 0) return;
    if (std::is_same_v<T, bfloat16> && rms_norm_backward_rows(a, stream)) return;
    const Runs runs(a.x.dim(0) * t);
    const Workspace<double> sums(runs.count * groups * d, stream, op);
    const Backward<T> arguments{strided<const T>(a.dy),
                                strided<const T>(a.x),
                                strided<const T>(a.gate),
                                strided<const Compute<T>>(a.weight),
                                strided<const T>(a.dresidual),
                                strided<T>(a.dx),
                                strided<T>(a.dgate),
                                a.eps,
                                t,
                                groups,
                                d};
    launch(op, stream, {runs.count * groups, threads_for(d)}, backward<T>, arguments, sums.data(), runs);
    launch_add_partials<double, Compute<T>>(
        op, stream, sums.data(), runs.count, groups * d,
        {a.dweight.ptr<Compute<T>>(), groups * d, d, a.dweight.stride(0), 1});
  });
}

}  // namespace transmamba::cuda
