// Chunked SSD: inside a chunk the dual (quadratic) form as matrix products, between chunks the state.
// One work item is one head of one sequence. Memory beyond the outputs is a chunk a thread; backward also
// keeps the states between its head's chunks, which it recomputes. Decays are taken relative to the chunk, in
// float64 sums.
#include "kernels/ssd.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/blas.h"
#include "kernels/cpu/parallel_for.h"
#include "kernels/cpu/vector_math.h"

namespace transmamba::cpu {
namespace {

constexpr std::int64_t kChunk = 64;

template <class T>
using Buffer = std::vector<T>;

template <class T>
Buffer<T> buffer(std::int64_t size) {
  return Buffer<T>(static_cast<std::size_t>(size), T(0));
}

/// Rows of one head: row i at `data + i * step`.
template <class T>
struct Rows {
  T* data;
  std::int64_t step;
  T* operator[](std::int64_t i) const { return data + i * step; }
  Rows from(std::int64_t i) const { return {data + i * step, step}; }
};
template <class T, class AnyView>
Rows<T> rows(const AnyView& view, std::int64_t b, std::int64_t h) {
  return {view.template ptr<std::remove_const_t<T>>(b, std::int64_t{0}, h), view.stride(1)};
}

template <class T>
T dot(const T* x, const T* y, std::int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) sum += x[i] * y[i];
  return sum;
}

template <class T>
void add_scaled(T scale, const T* x, T* y, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) y[i] += scale * x[i];
}

template <class T>
void scaled_copy(T scale, const T* x, T* y, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = scale * x[i];
}

/// The decays of a chunk of `size` tokens.
template <class T>
struct Decays {
  std::int64_t size = 0;
  Buffer<T> cum = buffer<T>(kChunk);         // A sum_{r<=i} dt_r
  Buffer<T> from_start = buffer<T>(kChunk);  // exp(cum_i): state before the chunk -> token i
  Buffer<T> to_end = buffer<T>(kChunk);      // exp(cum_last - cum_i): token i -> state after the chunk
  Buffer<T> dt = buffer<T>(kChunk);
  T whole = 1;  // exp(cum_last)

  void set(T rate, Rows<const T> steps, std::int64_t tokens) {
    size = tokens;
    double sum = 0;
    for (std::int64_t i = 0; i < size; ++i) {
      dt[i] = *steps[i];
      sum += static_cast<double>(rate) * static_cast<double>(dt[i]);
      cum[i] = static_cast<T>(sum);
    }
    const T last = cum[size - 1];
    for (std::int64_t i = 0; i < size; ++i) {
      from_start[i] = exp_or_zero(cum[i]);
      to_end[i] = exp_or_zero(last - cum[i]);
    }
    whole = from_start[size - 1];
  }
};

template <class T>
T rate_of(const ConstView& a_log, std::int64_t h) {
  return -std::exp(*a_log.ptr<T>(h));
}

template <class T>
Buffer<T> load_state(const ConstView& state, std::int64_t b, std::int64_t h, std::int64_t size,
                     std::int64_t p) {
  auto out = buffer<T>(size);
  if (state)
    for (std::int64_t i = 0; i < size / p; ++i) std::copy_n(state.ptr<T>(b, h, i), p, out.data() + i * p);
  return out;
}

template <class T>
void store_state(const Buffer<T>& from, const View& state, std::int64_t b, std::int64_t h, std::int64_t p) {
  if (state)
    for (std::int64_t i = 0; i < state.dim(2); ++i)
      std::copy_n(from.data() + i * p, p, state.ptr<T>(b, h, i));
}

/// state = whole state + sum_i to_end_i dt_i k_i v_i^T. `weighted` is scratch, (chunk, p).
template <class T>
void advance_state(const Decays<T>& d, Rows<const T> k, Rows<const T> v, std::int64_t n, std::int64_t p,
                   Buffer<T>& weighted, T* state) {
  for (std::int64_t i = 0; i < d.size; ++i)
    scaled_copy(d.to_end[i] * d.dt[i], v[i], weighted.data() + i * p, p);
  blas_gemm(true, false, n, p, d.size, T(1), k.data, k.step, weighted.data(), p, d.whole, state, p);
}

template <class T>
void summary_head(const SsdSummary& a, std::int64_t b, std::int64_t h) {
  const std::int64_t t = a.k.dim(1), n = a.k.dim(3), p = a.v.dim(3);
  const auto k = rows<const T>(a.k, b, h), v = rows<const T>(a.v, b, h), dt = rows<const T>(a.dt, b, h);
  const T rate = rate_of<T>(a.a_log, h);
  auto state = load_state<T>(a.state_in, b, h, n * p, p);
  auto weighted = buffer<T>(kChunk * p);
  Decays<T> decays;
  double log_decay = 0;
  for (std::int64_t s = 0; s < t; s += kChunk) {
    decays.set(rate, dt.from(s), std::min(kChunk, t - s));
    advance_state(decays, k.from(s), v.from(s), n, p, weighted, state.data());
    log_decay += static_cast<double>(decays.cum[decays.size - 1]);
  }
  store_state(state, a.state_out, b, h, p);
  if (a.log_decay) *a.log_decay.ptr<T>(b, h) = static_cast<T>(log_decay);
}

/// With w_i = exp(A sum_{r>i} dt_r) dt_i and u_i = k_i^T dS v_i, every token is independent of the others but
/// for the decay of token i, which scales all that came before it: d/d(A dt_i) = sum_{j<i} w_j u_j + <decay
/// S_in, dS>. Returns this head's da_log.
template <class T>
double summary_backward_head(const SsdSummaryBackward& a, std::int64_t b, std::int64_t h) {
  const std::int64_t t = a.k.dim(1), n = a.k.dim(3), p = a.v.dim(3);
  const auto k = rows<const T>(a.k, b, h), v = rows<const T>(a.v, b, h), dt = rows<const T>(a.dt, b, h);
  const auto dk = rows<T>(a.dk, b, h), dv = rows<T>(a.dv, b, h), ddt = rows<T>(a.ddt, b, h);
  const T rate = rate_of<T>(a.a_log, h);
  auto dstate = load_state<T>(a.dstate_out, b, h, n * p, p);
  auto k_dstate = buffer<T>(kChunk * p), v_dstate = buffer<T>(kChunk * n), after = buffer<T>(t),
       u = buffer<T>(t);
  double sum = 0;
  for (std::int64_t i = t - 1; i >= 0; --i) {
    after[i] = static_cast<T>(sum);
    sum += static_cast<double>(rate) * static_cast<double>(*dt[i]);
  }
  const T whole = exp_or_zero(static_cast<T>(sum));

  for (std::int64_t s = 0; s < t; s += kChunk) {
    const std::int64_t size = std::min(kChunk, t - s);
    blas_gemm(false, false, size, p, n, T(1), k[s], k.step, dstate.data(), p, T(0), k_dstate.data(), p);
    blas_gemm(false, true, size, n, p, T(1), v[s], v.step, dstate.data(), p, T(0), v_dstate.data(), n);
    for (std::int64_t i = 0; i < size; ++i) {
      const T w = exp_or_zero(after[s + i]) * *dt[s + i];
      u[s + i] = dot(k_dstate.data() + i * p, v[s + i], p);
      add_scaled(w, k_dstate.data() + i * p, dv[s + i], p);
      add_scaled(w, v_dstate.data() + i * n, dk[s + i], n);
    }
  }
  double before = a.dlog_decay ? static_cast<double>(*a.dlog_decay.ptr<T>(b, h)) : 0.0, drate = 0;
  if (a.state_in) {
    const auto state = load_state<T>(a.state_in, b, h, n * p, p);
    before += static_cast<double>(whole * dot(state.data(), dstate.data(), n * p));
  }
  for (std::int64_t i = 0; i < t; ++i) {
    const double decay = static_cast<double>(exp_or_zero(after[i])), step = static_cast<double>(*dt[i]);
    *ddt[i] += static_cast<T>(decay * static_cast<double>(u[i]) + static_cast<double>(rate) * before);
    drate += step * before;
    before += decay * step * static_cast<double>(u[i]);
  }
  for (T& x : dstate) x *= whole;
  store_state(dstate, a.dstate_in, b, h, p);
  return drate * static_cast<double>(rate);
}

template <class T>
void scan_head(const SsdScan& a, std::int64_t b, std::int64_t h) {
  const std::int64_t t = a.k.dim(1), n = a.k.dim(3), p = a.v.dim(3);
  const auto q = rows<const T>(a.q, b, h), k = rows<const T>(a.k, b, h), v = rows<const T>(a.v, b, h),
             dt = rows<const T>(a.dt, b, h);
  const auto y = rows<T>(a.y, b, h);
  const T rate = rate_of<T>(a.a_log, h), skip = a.d_skip ? *a.d_skip.ptr<T>(h) : T(0);
  auto state = load_state<T>(a.state_in, b, h, n * p, p);
  auto scores = buffer<T>(kChunk * kChunk), weighted = buffer<T>(kChunk * std::max(n, p));
  Decays<T> d;
  for (std::int64_t s = 0; s < t; s += kChunk) {
    const std::int64_t size = std::min(kChunk, t - s);
    d.set(rate, dt.from(s), size);
    // From the state before the chunk, and the skip.
    for (std::int64_t i = 0; i < size; ++i) {
      scaled_copy(d.from_start[i], q[s + i], weighted.data() + i * n, n);
      scaled_copy(skip, v[s + i], y[s + i], p);
    }
    blas_gemm(false, false, size, p, n, T(1), weighted.data(), n, state.data(), p, T(1), y[s], y.step);
    // From the tokens of the chunk.
    blas_gemm(false, true, size, size, n, T(1), q[s], q.step, k[s], k.step, T(0), scores.data(), kChunk);
    for (std::int64_t i = 0; i < size; ++i) {
      T* row = scores.data() + i * kChunk;
      const T cum = d.cum[i];
#pragma omp simd
      for (std::int64_t j = 0; j <= i; ++j) row[j] *= exp_or_zero(cum - d.cum[j]) * d.dt[j];
      std::fill(row + i + 1, row + size, T(0));
    }
    blas_gemm(false, false, size, p, size, T(1), scores.data(), kChunk, v[s], v.step, T(1), y[s], y.step);
    advance_state(d, k.from(s), v.from(s), n, p, weighted, state.data());
  }
  store_state(state, a.state_out, b, h, p);
}

/// dstate = whole dstate + sum_i from_start_i q_i dy_i^T: to the state before the chunk from the one after
/// it. `weighted` is scratch, (chunk, n).
template <class T>
void recede_gradient(const Decays<T>& d, Rows<const T> q, Rows<const T> dy, std::int64_t n, std::int64_t p,
                     Buffer<T>& weighted, T* dstate) {
  for (std::int64_t i = 0; i < d.size; ++i) scaled_copy(d.from_start[i], q[i], weighted.data() + i * n, n);
  blas_gemm(true, false, n, p, d.size, T(1), weighted.data(), n, dy.data, dy.step, d.whole, dstate, p);
}

template <class T>
void entry_gradient_head(const SsdEntryGradient& a, std::int64_t b, std::int64_t h) {
  const std::int64_t t = a.q.dim(1), n = a.q.dim(3), p = a.dy.dim(3);
  const auto q = rows<const T>(a.q, b, h), dy = rows<const T>(a.dy, b, h), dt = rows<const T>(a.dt, b, h);
  const T rate = rate_of<T>(a.a_log, h);
  auto dstate = buffer<T>(n * p), weighted = buffer<T>(kChunk * n);
  Decays<T> decays;
  for (std::int64_t s = (t - 1) / kChunk * kChunk; s >= 0 && t > 0; s -= kChunk) {
    decays.set(rate, dt.from(s), std::min(kChunk, t - s));
    recede_gradient(decays, q.from(s), dy.from(s), n, p, weighted, dstate.data());
  }
  if (a.log_decay)
    for (T& x : dstate) x *= exp_or_zero(*a.log_decay.ptr<T>(b, h));
  store_state(dstate, a.dstate_in, b, h, p);
}

struct HeadSums {
  double da_log = 0, dd_skip = 0;
};

/// Walks the chunks backwards with the gradient of the state; chunk states are recomputed first.
template <class T>
HeadSums scan_backward_head(const SsdScanBackward& a, std::int64_t b, std::int64_t h) {
  const std::int64_t t = a.k.dim(1), n = a.k.dim(3), p = a.v.dim(3), chunks = (t + kChunk - 1) / kChunk;
  const auto q = rows<const T>(a.q, b, h), k = rows<const T>(a.k, b, h), v = rows<const T>(a.v, b, h),
             dt = rows<const T>(a.dt, b, h), dy = rows<const T>(a.dy, b, h);
  const auto dq = rows<T>(a.dq, b, h), dk = rows<T>(a.dk, b, h), dv = rows<T>(a.dv, b, h),
             ddt = rows<T>(a.ddt, b, h);
  const T rate = rate_of<T>(a.a_log, h), skip = a.d_skip ? *a.d_skip.ptr<T>(h) : T(0);
  auto scores = buffer<T>(kChunk * kChunk), dscores = buffer<T>(kChunk * kChunk),
       weighted = buffer<T>(kChunk * std::max(n, p)), k_dstate = buffer<T>(kChunk * p),
       v_dstate = buffer<T>(kChunk * n), dy_state = buffer<T>(kChunk * n);
  auto column = buffer<T>(kChunk);
  Buffer<double> dcum(kChunk + 1);
  Decays<T> d;
  HeadSums sums;
  double drate = 0;

  auto states = buffer<T>((chunks + 1) * n * p);  // before each chunk
  const auto first = load_state<T>(a.state_in, b, h, n * p, p);
  std::copy(first.begin(), first.end(), states.begin());
  for (std::int64_t c = 0; c + 1 < chunks; ++c) {
    T* next = states.data() + (c + 1) * n * p;
    std::copy_n(next - n * p, n * p, next);
    d.set(rate, dt.from(c * kChunk), kChunk);
    advance_state(d, k.from(c * kChunk), v.from(c * kChunk), n, p, weighted, next);
  }

  auto dstate = load_state<T>(a.dstate_out, b, h, n * p, p);
  for (std::int64_t c = chunks - 1; c >= 0; --c) {
    const std::int64_t s = c * kChunk, size = std::min(kChunk, t - s), last = size - 1;
    const T* state = states.data() + c * n * p;
    d.set(rate, dt.from(s), size);
    std::fill(dcum.begin(), dcum.end(), 0.0);
    std::fill(column.begin(), column.end(), T(0));

    // Inside the chunk: scores -> M = (q k^T) decay dt, dscores -> d(q k^T), column_j = sum_i dM_ij (q
    // k^T)_ij decay_ij.
    blas_gemm(false, true, size, size, n, T(1), q[s], q.step, k[s], k.step, T(0), scores.data(), kChunk);
    blas_gemm(false, true, size, size, p, T(1), dy[s], dy.step, v[s], v.step, T(0), dscores.data(), kChunk);
    for (std::int64_t i = 0; i < size; ++i) {
      T *m = scores.data() + i * kChunk, *dm = dscores.data() + i * kChunk;
      const T cum = d.cum[i];
      T row = 0;
#pragma omp simd reduction(+ : row)
      for (std::int64_t j = 0; j <= i; ++j) {
        const T decay = exp_or_zero(cum - d.cum[j]), weight = decay * d.dt[j], e = dm[j] * m[j] * decay;
        column[j] += e;
        row += e * d.dt[j];
        m[j] *= weight;
        dm[j] *= weight;
      }
      dcum[i] += static_cast<double>(row);
      std::fill(m + i + 1, m + size, T(0));
      std::fill(dm + i + 1, dm + size, T(0));
    }
    // To the state after the chunk and from the state before it.
    blas_gemm(false, false, size, p, n, T(1), k[s], k.step, dstate.data(), p, T(0), k_dstate.data(), p);
    blas_gemm(false, true, size, n, p, T(1), v[s], v.step, dstate.data(), p, T(0), v_dstate.data(), n);
    blas_gemm(false, true, size, n, p, T(1), dy[s], dy.step, state, p, T(0), dy_state.data(), n);
    dcum[last] += static_cast<double>(d.whole * dot(state, dstate.data(), n * p));
    for (std::int64_t i = 0; i < size; ++i) {
      const T* kd = k_dstate.data() + i * p;
      const T w = d.to_end[i] * d.dt[i], u = dot(kd, v[s + i], p);
      dcum[i] += static_cast<double>(d.from_start[i] * dot(q[s + i], dy_state.data() + i * n, n)) -
                 static_cast<double>(column[i] * d.dt[i] + w * u);
      dcum[last] += static_cast<double>(w * u);
      column[i] += d.to_end[i] * u;  // now the direct part of ddt
      sums.dd_skip += static_cast<double>(dot(dy[s + i], v[s + i], p));
      for (std::int64_t x = 0; x < p; ++x) dv[s + i][x] = w * kd[x] + skip * dy[s + i][x];
      scaled_copy(w, v_dstate.data() + i * n, dk[s + i], n);
      scaled_copy(d.from_start[i], dy_state.data() + i * n, dq[s + i], n);
    }
    blas_gemm(true, false, size, p, size, T(1), scores.data(), kChunk, dy[s], dy.step, T(1), dv[s], dv.step);
    blas_gemm(true, false, size, n, size, T(1), dscores.data(), kChunk, q[s], q.step, T(1), dk[s], dk.step);
    blas_gemm(false, false, size, n, size, T(1), dscores.data(), kChunk, k[s], k.step, T(1), dq[s], dq.step);
    recede_gradient(d, q.from(s), dy.from(s), n, p, weighted, dstate.data());

    double later = 0;  // cum_i reaches every later token: d/d(A dt_i) is a suffix sum
    for (std::int64_t i = last; i >= 0; --i) {
      later += dcum[i];
      *ddt[s + i] = static_cast<T>(static_cast<double>(column[i]) + static_cast<double>(rate) * later);
      drate += static_cast<double>(d.dt[i]) * later;
    }
  }
  store_state(dstate, a.dstate_in, b, h, p);
  sums.da_log = drate * static_cast<double>(rate);
  return sums;
}

/// into[h] += sum over sequences, in order, whatever thread computed each.
template <class T>
void add_over_batch(const std::vector<double>& sums, const View& into) {
  const std::int64_t heads = into.dim(0);
  for (std::size_t i = 0; i < sums.size(); ++i)
    *into.ptr<T>(static_cast<std::int64_t>(i) % heads) += static_cast<T>(sums[i]);
}

}  // namespace

void ssd_summary(const SsdSummary& a, const Stream& stream) {
  prepare_blas();
  const std::int64_t heads = a.k.dim(2);
  with_float(a.k.dtype(), "ssd_summary", [&](auto type) {
    parallel_for(a.k.dim(0) * heads, stream,
                 [&](std::int64_t i) { summary_head<decltype(type)>(a, i / heads, i % heads); });
  });
}

void ssd_summary_backward(const SsdSummaryBackward& a, const Stream& stream) {
  prepare_blas();
  const std::int64_t heads = a.k.dim(2), items = a.k.dim(0) * heads;
  std::vector<double> da_log(static_cast<std::size_t>(items));
  with_float(a.k.dtype(), "ssd_summary_backward", [&](auto type) {
    parallel_for(items, stream, [&](std::int64_t i) {
      da_log[static_cast<std::size_t>(i)] = summary_backward_head<decltype(type)>(a, i / heads, i % heads);
    });
    add_over_batch<decltype(type)>(da_log, a.da_log);
  });
}

void ssd_scan(const SsdScan& a, const Stream& stream) {
  prepare_blas();
  const std::int64_t heads = a.k.dim(2);
  with_float(a.k.dtype(), "ssd_scan", [&](auto type) {
    parallel_for(a.k.dim(0) * heads, stream,
                 [&](std::int64_t i) { scan_head<decltype(type)>(a, i / heads, i % heads); });
  });
}

void ssd_scan_backward(const SsdScanBackward& a, const Stream& stream) {
  prepare_blas();
  const std::int64_t heads = a.k.dim(2), items = a.k.dim(0) * heads;
  std::vector<double> da_log(static_cast<std::size_t>(items)), dd_skip(da_log.size());
  with_float(a.k.dtype(), "ssd_scan_backward", [&](auto type) {
    parallel_for(items, stream, [&](std::int64_t i) {
      const HeadSums sums = scan_backward_head<decltype(type)>(a, i / heads, i % heads);
      da_log[static_cast<std::size_t>(i)] = sums.da_log;
      dd_skip[static_cast<std::size_t>(i)] = sums.dd_skip;
    });
    add_over_batch<decltype(type)>(da_log, a.da_log);
    if (a.dd_skip) add_over_batch<decltype(type)>(dd_skip, a.dd_skip);
  });
}

void ssd_entry_gradient(const SsdEntryGradient& a, const Stream& stream) {
  prepare_blas();
  const std::int64_t heads = a.q.dim(2);
  with_float(a.q.dtype(), "ssd_entry_gradient", [&](auto type) {
    parallel_for(a.q.dim(0) * heads, stream,
                 [&](std::int64_t i) { entry_gradient_head<decltype(type)>(a, i / heads, i % heads); });
  });
}

}  // namespace transmamba::cpu
