#include <cmath>

#include "kernels/cuda/ssd_bf16.cuh"
#include "kernels/cuda/ssd_block.cuh"
#include "kernels/ssd.h"

namespace transmamba::cuda {
namespace {

template <class T>
struct Forward {
  Strided<const T> k, v, dt;
  const T* a_log;
  Strided<const T> state_in;
  Strided<T> state_out, log_decay;
  std::int64_t t, heads, n, p;
  T* workspace;  // a block: state (n, p), weighted (chunk, p)
};
template <class T>
std::int64_t workspace_of(const Forward<T>& a) {
  return (a.n + kChunk) * a.p;
}

template <class T>
__global__ void forward(Forward<T> a) {
  __shared__ Decays<T> decays;
  const std::int64_t b = blockIdx.x / a.heads, h = blockIdx.x % a.heads, n = a.n, p = a.p;
  const auto k = rows(a.k, b, h), v = rows(a.v, b, h);
  const Rows<const T> dt{a.dt(b, 0) + h, a.dt.stride[1]};
  const T rate = -exp(a.a_log[h]);
  T* const state = a.workspace + blockIdx.x * (n + kChunk) * p;
  T* const weighted = state + n * p;
  load_state(a.state_in, b, h, n, p, state);
  double log_decay = 0;
  for (std::int64_t s = 0; s < a.t; s += kChunk) {
    decays.set(rate, dt.from(s), min(kChunk, a.t - s));
    advance_state(decays, k.from(s), v.from(s), n, p, weighted, state, state);
    log_decay += static_cast<double>(decays.cum[decays.size - 1]);
  }
  store_state(state, T(1), a.state_out, b, h, n, p);
  if (a.log_decay.data && threadIdx.x == 0) *a.log_decay(b, h) = static_cast<T>(log_decay);
}

template <class T>
struct Backward {
  Strided<const T> dstate_out, dlog_decay, k, v, dt;
  const T* a_log;
  Strided<const T> state_in;
  Strided<T> dk, dv, ddt, dstate_in;
  double* da_log;  // (b, h)
  std::int64_t t, heads, n, p;
  T* workspace;  // a block: dstate, state (n, p), k_dstate (chunk, p), v_dstate (chunk, n), after (t)
};
template <class T>
__host__ __device__ std::int64_t workspace_of(const Backward<T>& a) {
  return 2 * a.n * a.p + kChunk * (a.n + a.p) + a.t;
}

/// after_i = A sum_{r>i} dt_r for all tokens, in float64 sums; returns the sum over all. Rates of a chunk
/// wait in shared memory, so that the thread that adds them up does not wait for each.
template <class T>
__device__ double sums_after(T rate, Rows<const T> dt, std::int64_t t, T* after) {
  __shared__ double steps[kChunk];
  __shared__ double sum;
  if (threadIdx.x == 0) sum = 0;
  for (std::int64_t s = (t - 1) / kChunk * kChunk; s >= 0 && t > 0; s -= kChunk) {
    const std::int64_t size = min(kChunk, t - s);
    __syncthreads();
    for (std::int64_t i = threadIdx.x; i < size; i += blockDim.x)
      steps[i] = static_cast<double>(rate) * static_cast<double>(*dt[s + i]);
    __syncthreads();
    if (threadIdx.x == 0)
      for (std::int64_t i = size - 1; i >= 0; --i) {
        after[s + i] = static_cast<T>(sum);
        sum += steps[i];
      }
  }
  __syncthreads();
  return sum;
}

/// With w_i = exp(A sum_{r>i} dt_r) dt_i and u_i = k_i^T dS v_i, every token is independent of the others but
/// for the decay of token i, which scales all that came before it: d/d(A dt_i) = sum_{j<i} w_j u_j + <decay
/// S_in, dS>.
template <class T>
__global__ void backward(Backward<T> a) {
  __shared__ T u[kChunk], decay[kChunk], step[kChunk];
  const std::int64_t b = blockIdx.x / a.heads, h = blockIdx.x % a.heads, n = a.n, p = a.p, t = a.t;
  const auto k = rows(a.k, b, h), v = rows(a.v, b, h);
  const auto dk = rows(a.dk, b, h), dv = rows(a.dv, b, h);
  const Rows<const T> dt{a.dt(b, 0) + h, a.dt.stride[1]};
  const Rows<T> ddt{a.ddt(b, 0) + h, a.ddt.stride[1]};
  const T rate = -exp(a.a_log[h]);
  T* const dstate = a.workspace + blockIdx.x * workspace_of(a);
  T *const state = dstate + n * p, *const k_dstate = state + n * p, *const v_dstate = k_dstate + kChunk * p,
           *const after = v_dstate + kChunk * n;
  load_state(a.dstate_out, b, h, n, p, dstate);
  const T whole = exp(static_cast<T>(sums_after(rate, dt, t, after)));

  double before = a.dlog_decay.data ? static_cast<double>(*a.dlog_decay(b, h)) : 0.0, drate = 0;
  if (a.state_in.data) {
    load_state(a.state_in, b, h, n, p, state);
    before += static_cast<double>(whole * block_dot(state, dstate, n * p));
  }
  for (std::int64_t s = 0; s < t; s += kChunk) {
    const std::int64_t size = min(kChunk, t - s);
    multiply<T>(size, p, n, k.from(s), {dstate, p}, T(0), {k_dstate, p});
    multiply<T>(size, n, p, v.from(s), transposed<T>(dstate, p), T(0), {v_dstate, n});
    for (std::int64_t i = threadIdx.x / kWarp; i < size; i += blockDim.x / kWarp) {
      const T sum = warp_dot<T>(k_dstate + i * p, v[s + i], p);
      if (threadIdx.x % kWarp == 0) u[i] = sum, decay[i] = exp(after[s + i]), step[i] = *dt[s + i];
    }
    __syncthreads();
    each_element(size, p, [&](auto i, auto j) { dv[s + i][j] += decay[i] * step[i] * k_dstate[i * p + j]; });
    each_element(size, n, [&](auto i, auto j) { dk[s + i][j] += decay[i] * step[i] * v_dstate[i * n + j]; });
    if (threadIdx.x == 0)
      for (std::int64_t i = 0; i < size; ++i) {
        const double weight = static_cast<double>(decay[i]) * static_cast<double>(u[i]);
        *ddt[s + i] += static_cast<T>(weight + static_cast<double>(rate) * before);
        drate += static_cast<double>(step[i]) * before;
        before += weight * static_cast<double>(step[i]);
      }
    __syncthreads();
  }
  store_state(dstate, whole, a.dstate_in, b, h, n, p);
  if (threadIdx.x == 0) a.da_log[blockIdx.x] = drate * static_cast<double>(rate);
}

template <class T>
struct Entry {
  Strided<const T> dy, q, dt;
  const T* a_log;
  Strided<const T> log_decay;
  Strided<T> dstate_in;
  std::int64_t t, heads, n, p;
  T* workspace;  // a block: dstate (n, p), weighted (chunk, n)
};
template <class T>
std::int64_t workspace_of(const Entry<T>& a) {
  return (a.p + kChunk) * a.n;
}

template <class T>
__global__ void entry_gradient(Entry<T> a) {
  __shared__ Decays<T> decays;
  const std::int64_t b = blockIdx.x / a.heads, h = blockIdx.x % a.heads, n = a.n, p = a.p;
  const auto q = rows(a.q, b, h), dy = rows(a.dy, b, h);
  const Rows<const T> dt{a.dt(b, 0) + h, a.dt.stride[1]};
  const T rate = -exp(a.a_log[h]);
  T* const dstate = a.workspace + blockIdx.x * n * (p + kChunk);
  T* const weighted = dstate + n * p;
  load_state(Strided<const T>{}, b, h, n, p, dstate);
  for (std::int64_t s = (a.t - 1) / kChunk * kChunk; s >= 0 && a.t > 0; s -= kChunk) {
    decays.set(rate, dt.from(s), min(kChunk, a.t - s));
    each_element(decays.size, n,
                 [&](auto i, auto j) { weighted[i * n + j] = decays.from_start[i] * q[s + i][j]; });
    multiply<T>(n, p, decays.size, transposed<T>(weighted, n), dy.from(s), decays.whole(), {dstate, p});
  }
  store_state(dstate, a.log_decay.data ? exp(*a.log_decay(b, h)) : T(1), a.dstate_in, b, h, n, p);
}

}  // namespace

void ssd_summary(const SsdSummary& a, const Stream& stream) {
  constexpr auto op = "ssd_summary";
  if (a.k.dtype() == DType::bf16) return ssd_summary_bf16(a, stream);
  dispatch_float(a.k.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t blocks = a.k.dim(0) * a.k.dim(2);
    Forward<T> arguments{strided<const T>(a.k),
                         strided<const T>(a.v),
                         strided<const T>(a.dt),
                         a.a_log.ptr<T>(),
                         strided<const T>(a.state_in),
                         strided<T>(a.state_out),
                         strided<T>(a.log_decay),
                         a.k.dim(1),
                         a.k.dim(2),
                         a.k.dim(3),
                         a.v.dim(3),
                         nullptr};
    const Workspace<T> workspace(blocks * workspace_of(arguments), stream, op);
    arguments.workspace = workspace.data();
    launch(op, stream, {blocks}, forward<T>, arguments);
  });
}

void ssd_summary_backward(const SsdSummaryBackward& a, const Stream& stream) {
  constexpr auto op = "ssd_summary_backward";
  if (a.k.dtype() == DType::bf16) return ssd_summary_backward_bf16(a, stream);
  dispatch_float(a.k.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t b = a.k.dim(0), heads = a.k.dim(2);
    const Workspace<double> da_log(b * heads, stream, op);
    Backward<T> arguments{strided<const T>(a.dstate_out),
                          strided<const T>(a.dlog_decay),
                          strided<const T>(a.k),
                          strided<const T>(a.v),
                          strided<const T>(a.dt),
                          a.a_log.ptr<T>(),
                          strided<const T>(a.state_in),
                          strided<T>(a.dk),
                          strided<T>(a.dv),
                          strided<T>(a.ddt),
                          strided<T>(a.dstate_in),
                          da_log.data(),
                          a.k.dim(1),
                          heads,
                          a.k.dim(3),
                          a.v.dim(3),
                          nullptr};
    const Workspace<T> workspace(b * heads * workspace_of(arguments), stream, op);
    arguments.workspace = workspace.data();
    launch(op, stream, {b * heads}, backward<T>, arguments);
    launch(op, stream, thread_each(heads), add_over_batch<T>, da_log.data(), b, heads, a.da_log.ptr<T>());
  });
}

void ssd_entry_gradient(const SsdEntryGradient& a, const Stream& stream) {
  constexpr auto op = "ssd_entry_gradient";
  if (a.q.dtype() == DType::bf16) return ssd_entry_gradient_bf16(a, stream);
  dispatch_float(a.q.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t blocks = a.q.dim(0) * a.q.dim(2);
    Entry<T> arguments{strided<const T>(a.dy),
                       strided<const T>(a.q),
                       strided<const T>(a.dt),
                       a.a_log.ptr<T>(),
                       strided<const T>(a.log_decay),
                       strided<T>(a.dstate_in),
                       a.q.dim(1),
                       a.q.dim(2),
                       a.q.dim(3),
                       a.dy.dim(3),
                       nullptr};
    const Workspace<T> workspace(blocks * workspace_of(arguments), stream, op);
    arguments.workspace = workspace.data();
    launch(op, stream, {blocks}, entry_gradient<T>, arguments);
  });
}

}  // namespace transmamba::cuda
