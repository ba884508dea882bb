// Chunked SSD: inside a chunk the dual (quadratic) form as matrix products, between chunks the state. Decays
// are taken relative to the chunk, in float64 sums.
#include <cmath>

#include "kernels/cuda/ssd_bf16.cuh"
#include "kernels/cuda/ssd_block.cuh"
#include "kernels/ssd.h"

namespace transmamba::cuda {
namespace {

template <class T>
struct Forward {
  Strided<const T> q, k, v, dt;
  const T *a_log, *d_skip;
  Strided<const T> state_in;
  Strided<T> y, state_out;
  std::int64_t t, heads, n, p;
  T* workspace;
};
/// A block: state (n, p), weighted (chunk, max(n, p)), scores (chunk, chunk).
__host__ __device__ std::int64_t forward_workspace(std::int64_t n, std::int64_t p) {
  return n * p + kChunk * (n > p ? n : p) + kChunk * kChunk;
}

template <class T>
__global__ void forward(Forward<T> a) {
  __shared__ Decays<T> d;
  const std::int64_t b = blockIdx.x / a.heads, h = blockIdx.x % a.heads, n = a.n, p = a.p;
  const auto q = rows(a.q, b, h), k = rows(a.k, b, h), v = rows(a.v, b, h);
  const auto y = rows(a.y, b, h);
  const Rows<const T> dt{a.dt(b, 0) + h, a.dt.stride[1]};
  const T rate = -exp(a.a_log[h]), skip = a.d_skip ? a.d_skip[h] : T(0);
  T* const state = a.workspace + blockIdx.x * forward_workspace(n, p);
  T *const scores = state + n * p, *const weighted = scores + kChunk * kChunk;
  load_state(a.state_in, b, h, n, p, state);
  for (std::int64_t s = 0; s < a.t; s += kChunk) {
    const std::int64_t size = min(kChunk, a.t - s);
    d.set(rate, dt.from(s), size);
    // From the state before the chunk, and the skip.
    each_element(size, n, [&](auto i, auto j) { weighted[i * n + j] = d.from_start[i] * q[s + i][j]; });
    each_element(size, p, [&](auto i, auto j) { y[s + i][j] = skip * v[s + i][j]; });
    multiply<T>(size, p, n, {weighted, n}, {state, p}, T(1), y.from(s));
    // From the tokens of the chunk.
    multiply<T>(size, size, n, q.from(s), transposed(k.from(s)), T(0), {scores, kChunk});
    each_element(size, size, [&](auto i, auto j) {
      T& score = scores[i * kChunk + j];
      score = j > i ? T(0) : score * exp(d.cum[i] - d.cum[j]) * d.dt[j];
    });
    multiply<T>(size, p, size, {scores, kChunk}, v.from(s), T(1), y.from(s));
    advance_state(d, k.from(s), v.from(s), n, p, weighted, state, state);
  }
  store_state(state, T(1), a.state_out, b, h, n, p);
}

template <class T>
struct Backward {
  Strided<const T> dy, dstate_out, q, k, v, dt;
  const T *a_log, *d_skip;
  Strided<const T> state_in;
  Strided<T> dq, dk, dv, ddt, dstate_in;
  double *da_log, *dd_skip;  // (b, h)
  std::int64_t t, heads, n, p;
  T* workspace;
  __host__ __device__ std::int64_t chunks() const { return (t + kChunk - 1) / kChunk; }
};

/// A block's share of the workspace.
template <class T>
struct Buffers {
  T *states, *dstate, *scores, *dscores, *shares, *weighted, *k_dstate, *v_dstate, *dy_state;
  std::int64_t size;
  __host__ __device__ Buffers(const Backward<T>& a, std::int64_t block) {
    const std::int64_t n = a.n, p = a.p;
    const std::int64_t sizes[] = {(a.chunks() + 1) * n * p,  // states: before each chunk
                                  n * p,                     // dstate
                                  kChunk * kChunk,           // scores
                                  kChunk * kChunk,           // dscores
                                  kChunk * kChunk,           // shares: of the decays' gradients
                                  kChunk * (n > p ? n : p),  // weighted
                                  kChunk * p,                // k_dstate
                                  kChunk * n,                // v_dstate
                                  kChunk * n};               // dy_state
    T** const fields[] = {&states,   &dstate,   &scores,   &dscores, &shares,
                          &weighted, &k_dstate, &v_dstate, &dy_state};
    size = 0;
    for (std::int64_t each : sizes) size += each;
    T* next = a.workspace + block * size;
    for (int i = 0; i < 9; ++i) *fields[i] = next, next += sizes[i];
  }
};

/// What one chunk adds up for its tokens, in shared memory.
template <class T>
struct TokenSums {
  double dcum[kChunk];  // gradient of cum_i
  double to_last[kChunk];
  T column[kChunk];  // the direct part of ddt_i
  T dy_v[kChunk];    // dy_i . v_i
};

/// Inside the chunk: scores -> M = (q k^T) decay dt, dscores -> d(q k^T). shares_ij = dM_ij (q k^T)_ij
/// decay_ij: its column sums are ddt_j, and times dt_j it is the gradient of cum_i and, negative, of cum_j.
template <class T>
__device__ void inside_chunk(const Decays<T>& d, const Buffers<T>& w, TokenSums<T>& sums) {
  each_element(d.size, d.size, [&](auto i, auto j) {
    T &m = w.scores[i * kChunk + j], &dm = w.dscores[i * kChunk + j];
    const T decay = j > i ? T(0) : exp(d.cum[i] - d.cum[j]);
    w.shares[i * kChunk + j] = j > i ? T(0) : dm * m * decay;
    m = j > i ? T(0) : m * decay * d.dt[j];
    dm = j > i ? T(0) : dm * decay * d.dt[j];
  });
  for (std::int64_t i = threadIdx.x; i < d.size; i += blockDim.x) {
    T row = 0, column = 0;
    for (std::int64_t j = 0; j <= i; ++j) row += w.shares[i * kChunk + j] * d.dt[j];
    for (std::int64_t l = i; l < d.size; ++l) column += w.shares[l * kChunk + i];
    sums.column[i] = column;
    sums.dcum[i] = static_cast<double>(row) - static_cast<double>(column * d.dt[i]);
  }
  __syncthreads();
}

/// cum_i reaches every later token: d/d(A dt_i) is a suffix sum. By one thread; returns its share of d(rate).
template <class T>
__device__ double step_gradients(const Decays<T>& d, const TokenSums<T>& sums, double later, T rate,
                                 Rows<T> ddt) {
  double drate = 0;
  for (std::int64_t i = 0; i < d.size; ++i) later += sums.to_last[i];
  for (std::int64_t i = d.size - 1; i >= 0; --i) {
    later += sums.dcum[i];
    *ddt[i] = static_cast<T>(static_cast<double>(sums.column[i]) + static_cast<double>(rate) * later);
    drate += static_cast<double>(d.dt[i]) * later;
  }
  return drate;
}

/// Walks the chunks backwards with the gradient of the state; chunk states are recomputed first.
template <class T>
__global__ void backward(Backward<T> a) {
  __shared__ Decays<T> d;
  __shared__ TokenSums<T> sums;
  const std::int64_t b = blockIdx.x / a.heads, h = blockIdx.x % a.heads, n = a.n, p = a.p,
                     chunks = a.chunks();
  const auto q = rows(a.q, b, h), k = rows(a.k, b, h), v = rows(a.v, b, h), dy = rows(a.dy, b, h);
  const auto dq = rows(a.dq, b, h), dk = rows(a.dk, b, h), dv = rows(a.dv, b, h);
  const Rows<const T> dt{a.dt(b, 0) + h, a.dt.stride[1]};
  const Rows<T> ddt{a.ddt(b, 0) + h, a.ddt.stride[1]};
  const T rate = -exp(a.a_log[h]), skip = a.d_skip ? a.d_skip[h] : T(0);
  const Buffers<T> w(a, blockIdx.x);
  double drate = 0, dskip = 0;  // of thread 0

  load_state(a.state_in, b, h, n, p, w.states);
  for (std::int64_t c = 0; c + 1 < chunks; ++c) {
    T* const state = w.states + c * n * p;
    d.set(rate, dt.from(c * kChunk), kChunk);
    advance_state(d, k.from(c * kChunk), v.from(c * kChunk), n, p, w.weighted, state, state + n * p);
  }
  load_state(a.dstate_out, b, h, n, p, w.dstate);
  for (std::int64_t c = chunks - 1; c >= 0; --c) {
    const std::int64_t s = c * kChunk, size = min(kChunk, a.t - s);
    const T* const state = w.states + c * n * p;
    d.set(rate, dt.from(s), size);
    multiply<T>(size, size, n, q.from(s), transposed(k.from(s)), T(0), {w.scores, kChunk});
    multiply<T>(size, size, p, dy.from(s), transposed(v.from(s)), T(0), {w.dscores, kChunk});
    inside_chunk(d, w, sums);
    // To the state after the chunk and from the state before it.
    multiply<T>(size, p, n, k.from(s), {w.dstate, p}, T(0), {w.k_dstate, p});
    multiply<T>(size, n, p, v.from(s), transposed<T>(w.dstate, p), T(0), {w.v_dstate, n});
    multiply<T>(size, n, p, dy.from(s), transposed<T>(state, p), T(0), {w.dy_state, n});
    const T whole = d.whole() * block_dot<T>(state, w.dstate, n * p);
    for (std::int64_t i = threadIdx.x / kWarp; i < size; i += blockDim.x / kWarp) {
      const T u = warp_dot<T>(w.k_dstate + i * p, v[s + i], p), dy_v = warp_dot<T>(dy[s + i], v[s + i], p);
      const T from_state = d.from_start[i] * warp_dot<T>(q[s + i], w.dy_state + i * n, n);
      if (threadIdx.x % kWarp > 0) continue;
      const T weight = d.to_end[i] * d.dt[i];
      sums.dcum[i] += static_cast<double>(from_state) - static_cast<double>(weight * u);
      sums.to_last[i] = static_cast<double>(weight * u);
      sums.column[i] += d.to_end[i] * u;
      sums.dy_v[i] = dy_v;
    }
    each_element(size, p, [&](auto i, auto j) {
      dv[s + i][j] = d.to_end[i] * d.dt[i] * w.k_dstate[i * p + j] + skip * dy[s + i][j];
    });
    each_element(size, n, [&](auto i, auto j) {
      dk[s + i][j] = d.to_end[i] * d.dt[i] * w.v_dstate[i * n + j];
      dq[s + i][j] = d.from_start[i] * w.dy_state[i * n + j];
      w.weighted[i * n + j] = d.from_start[i] * q[s + i][j];
    });
    multiply<T>(size, p, size, transposed<T>(w.scores, kChunk), dy.from(s), T(1), dv.from(s));
    multiply<T>(size, n, size, transposed<T>(w.dscores, kChunk), q.from(s), T(1), dk.from(s));
    multiply<T>(size, n, size, {w.dscores, kChunk}, k.from(s), T(1), dq.from(s));
    multiply<T>(n, p, size, transposed<T>(w.weighted, n), dy.from(s), d.whole(), {w.dstate, p});
    if (threadIdx.x == 0) {
      for (std::int64_t i = 0; i < size; ++i) dskip += static_cast<double>(sums.dy_v[i]);
      drate += step_gradients(d, sums, static_cast<double>(whole), rate, ddt.from(s));
    }
  }
  store_state(w.dstate, T(1), a.dstate_in, b, h, n, p);
  if (threadIdx.x > 0) return;
  a.da_log[blockIdx.x] = drate * static_cast<double>(rate);
  a.dd_skip[blockIdx.x] = dskip;
}

}  // namespace

void ssd_scan(const SsdScan& a, const Stream& stream) {
  constexpr auto op = "ssd_scan";
  if (a.k.dtype() == DType::bf16) return ssd_scan_bf16(a, stream);
  dispatch_float(a.k.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t blocks = a.k.dim(0) * a.k.dim(2), n = a.k.dim(3), p = a.v.dim(3);
    const Workspace<T> workspace(blocks * forward_workspace(n, p), stream, op);
    const Forward<T> arguments{strided<const T>(a.q),
                               strided<const T>(a.k),
                               strided<const T>(a.v),
                               strided<const T>(a.dt),
                               a.a_log.ptr<T>(),
                               strided<const T>(a.d_skip).data,
                               strided<const T>(a.state_in),
                               strided<T>(a.y),
                               strided<T>(a.state_out),
                               a.k.dim(1),
                               a.k.dim(2),
                               n,
                               p,
                               workspace.data()};
    launch(op, stream, {blocks}, forward<T>, arguments);
  });
}

void ssd_scan_backward(const SsdScanBackward& a, const Stream& stream) {
  constexpr auto op = "ssd_scan_backward";
  if (a.k.dtype() == DType::bf16) return ssd_scan_backward_bf16(a, stream);
  dispatch_float(a.k.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t b = a.k.dim(0), heads = a.k.dim(2), blocks = b * heads;
    const Workspace<double> head_sums(2 * blocks, stream, op);
    Backward<T> arguments{strided<const T>(a.dy),
                          strided<const T>(a.dstate_out),
                          strided<const T>(a.q),
                          strided<const T>(a.k),
                          strided<const T>(a.v),
                          strided<const T>(a.dt),
                          a.a_log.ptr<T>(),
                          strided<const T>(a.d_skip).data,
                          strided<const T>(a.state_in),
                          strided<T>(a.dq),
                          strided<T>(a.dk),
                          strided<T>(a.dv),
                          strided<T>(a.ddt),
                          strided<T>(a.dstate_in),
                          head_sums.data(),
                          head_sums.data() + blocks,
                          a.k.dim(1),
                          heads,
                          a.k.dim(3),
                          a.v.dim(3),
                          nullptr};
    const Workspace<T> workspace(blocks * Buffers<T>(arguments, 0).size, stream, op);
    arguments.workspace = workspace.data();
    launch(op, stream, {blocks}, backward<T>, arguments);
    launch(op, stream, thread_each(heads), add_over_batch<T>, arguments.da_log, b, heads, a.da_log.ptr<T>());
    if (a.dd_skip)
      launch(op, stream, thread_each(heads), add_over_batch<T>, arguments.dd_skip, b, heads,
             a.dd_skip.ptr<T>());
  });
}

}  // namespace transmamba::cuda
