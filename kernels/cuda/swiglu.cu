#include "kernels/swiglu.h"

#include "kernels/cuda/vectors.cuh"

namespace transmamba::cuda {
namespace {

/// A thread N elements of a row of (b, t, f); `pieces` blocks a row.
template <int N>
struct Place {
  std::int64_t i, j, k;
  __device__ Place(std::int64_t t, int pieces) {
    const unsigned row = blockIdx.x / static_cast<unsigned>(pieces);
    i = row / t, j = row % t;
    k = static_cast<std::int64_t>(blockIdx.x % static_cast<unsigned>(pieces) * blockDim.x + threadIdx.x) * N;
  }
};

template <int N, class T>
__global__ void forward(Strided<const T> gate_up, Strided<T> y, std::int64_t t, std::int64_t f, int pieces) {
  const Place<N> at(t, pieces);
  if (at.k >= f) return;
  const T* const row = gate_up(at.i, at.j) + at.k;
  const auto gate = load_pack<N>(row), up = load_pack<N>(row + f);
  Compute<T> out[N];
#pragma unroll
  for (int e = 0; e < N; ++e) out[e] = gate[e] * sigmoid_for<T>(gate[e]) * up[e];
  store_pack(y(at.i, at.j) + at.k, out);
}

/// Each element is read and written by one thread: dgate_up may alias gate_up.
template <int N, class T>
__global__ void backward(Strided<const T> dy, Strided<const T> gate_up, Strided<T> dgate_up, std::int64_t t,
                         std::int64_t f, int pieces) {
  const Place<N> at(t, pieces);
  if (at.k >= f) return;
  const T* const row = gate_up(at.i, at.j) + at.k;
  const auto gate = load_pack<N>(row), up = load_pack<N>(row + f), d = load_pack<N>(dy(at.i, at.j) + at.k);
  Compute<T> dgate[N], dup[N];
#pragma unroll
  for (int e = 0; e < N; ++e) {
    const Compute<T> s = sigmoid_for<T>(gate[e]);
    dgate[e] = d[e] * up[e] * silu_gradient_for<T>(gate[e], s);
    dup[e] = d[e] * gate[e] * s;
  }
  T* const out = dgate_up(at.i, at.j) + at.k;
  store_pack(out, dgate);
  store_pack(out + f, dup);
}

/// Launches a kernel for N elements a thread.
template <int N, class... Parameters, class... Arguments>
void launch_rows(std::string_view op, const Stream& stream, const ConstView& y, void (*kernel)(Parameters...),
                 const Arguments&... arguments) {
  const std::int64_t threads = (y.dim(2) + N - 1) / N;
  const std::int64_t block = std::min<std::int64_t>(kThreads, (threads + kWarp - 1) / kWarp * kWarp);
  if (y.numel() == 0) return;
  const std::int64_t pieces = (threads + block - 1) / block;
  launch(op, stream, {y.dim(0) * y.dim(1) * pieces, static_cast<int>(block)}, kernel, arguments..., y.dim(1),
         y.dim(2), static_cast<int>(pieces));
}

}  // namespace

void swiglu(const Swiglu& a, const Stream& stream) {
  dispatch_storage(a.y.dtype(), "swiglu", [&](auto zero) {
    using T = decltype(zero);
    constexpr int kMost = 16 / sizeof(T);
    const auto run = [&](auto n) {
      launch_rows<n>("swiglu", stream, a.y, forward<n, T>, strided<const T>(a.gate_up), strided<T>(a.y));
    };
    if (in_packs(a.y, kMost) && in_packs(a.gate_up, kMost))
      run(std::integral_constant<int, kMost>{});
    else
      run(std::integral_constant<int, 1>{});
  });
}

void swiglu_backward(const SwigluBackward& a, const Stream& stream) {
  dispatch_storage(a.dy.dtype(), "swiglu_backward", [&](auto zero) {
    using T = decltype(zero);
    constexpr int kMost = 16 / sizeof(T);
    const auto run = [&](auto n) {
      launch_rows<n>("swiglu_backward", stream, a.dy, backward<n, T>, strided<const T>(a.dy),
                     strided<const T>(a.gate_up), strided<T>(a.dgate_up));
    };
    if (in_packs(a.dy, kMost) && in_packs(a.gate_up, kMost) && in_packs(a.dgate_up, kMost))
      run(std::integral_constant<int, kMost>{});
    else
      run(std::integral_constant<int, 1>{});
  });
}

}  // namespace transmamba::cuda
