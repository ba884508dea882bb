// What the SSD kernels share. A block is one head of one sequence; its matrices lie in a workspace of its
// own, which a multiprocessor's caches hold. Every function here is called by all threads of a block.
#pragma once

#include <utility>

#include "kernels/cuda/device.cuh"

namespace transmamba::cuda {

constexpr std::int64_t kChunk = 64;

/// Rows of one head: row i at `data + i * step`.
template <class T>
struct Rows {
  T* data;
  std::int64_t step;
  __device__ T* operator[](std::int64_t i) const { return data + i * step; }
  __device__ Rows from(std::int64_t i) const { return {data + i * step, step}; }
};
/// Of a view (b, t, h, width).
template <class T>
__device__ Rows<T> rows(const Strided<T>& view, std::int64_t b, std::int64_t h) {
  return {view(b, 0, h), view.stride[1]};
}

/// A matrix (rows, columns) at (i, j): row-major, or the transpose of a row-major one.
template <class T>
struct Matrix {
  T* data;
  std::int64_t row, column;  // strides
  Matrix() = default;
  __device__ Matrix(T* data_, std::int64_t step) : data(data_), row(step), column(1) {}
  __device__ Matrix(const Rows<T>& x) : data(x.data), row(x.step), column(1) {}  // NOLINT
  __device__ Matrix transposed() const {
    Matrix out = *this;
    out.row = column, out.column = row;
    return out;
  }
  __device__ T& operator()(std::int64_t i, std::int64_t j) const { return data[i * row + j * column]; }
};
template <class T>
__device__ Matrix<const T> transposed(const T* data, std::int64_t step) {
  return Matrix<const T>(data, step).transposed();
}
template <class T>
__device__ Matrix<const T> transposed(const Rows<const T>& x) {
  return Matrix<const T>(x).transposed();
}

/// C = A B + beta C, where A is (m, k) and B (k, n). A thread computes four rows of a column of C.
template <class T>
__device__ void multiply(std::int64_t m, std::int64_t n, std::int64_t k, const Matrix<const T>& a,
                         const Matrix<const T>& b, T beta, const Matrix<T>& c) {
  constexpr int kRows = 4;
  const std::int64_t items = (m + kRows - 1) / kRows * n;
  for (std::int64_t item = threadIdx.x; item < items; item += blockDim.x) {
    const std::int64_t i = item / n * kRows, j = item % n;
    std::int64_t row[kRows];  // the last rows may be the same one
    T sum[kRows] = {};
    for (int r = 0; r < kRows; ++r) row[r] = min(i + r, m - 1);
    for (std::int64_t l = 0; l < k; ++l) {
      const T value = b(l, j);
      for (int r = 0; r < kRows; ++r) sum[r] += a(row[r], l) * value;
    }
    for (int r = 0; r < kRows && i + r < m; ++r) {
      T& out = c(i + r, j);
      out = beta == T(0) ? sum[r] : beta * out + sum[r];
    }
  }
  __syncthreads();
}

/// By one warp; all its lanes get it.
template <class T>
__device__ T warp_dot(const T* x, const T* y, std::int64_t n) {
  T sum = 0;
  for (std::int64_t i = threadIdx.x % kWarp; i < n; i += kWarp) sum += x[i] * y[i];
  return warp_reduce<Plus>(sum);
}
template <class T>
__device__ T block_dot(const T* x, const T* y, std::int64_t n) {
  T sum = 0;
  for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += x[i] * y[i];
  return block_reduce<Plus>(sum);
}

/// to(i, j) for every element of (rows, columns).
template <class F>
__device__ void each_element(std::int64_t rows, std::int64_t columns, F&& f) {
  for (std::int64_t item = threadIdx.x; item < rows * columns; item += blockDim.x)
    f(item / columns, item % columns);
  __syncthreads();
}

/// State (n, p) of one head, contiguous at `to`; absent is zero.
template <class T>
__device__ void load_state(const Strided<const T>& state, std::int64_t b, std::int64_t h, std::int64_t n,
                           std::int64_t p, T* to) {
  each_element(n, p, [&](auto i, auto j) { to[i * p + j] = state.data ? state(b, h, i)[j] : T(0); });
}
template <class T>
__device__ void store_state(const T* from, T factor, const Strided<T>& state, std::int64_t b, std::int64_t h,
                            std::int64_t n, std::int64_t p) {
  if (state.data) each_element(n, p, [&](auto i, auto j) { state(b, h, i)[j] = from[i * p + j] * factor; });
}

/// The decays of a chunk of `size` tokens, in shared memory.
template <class T>
struct Decays {
  T cum[kChunk];         // A sum_{r<=i} dt_r
  T from_start[kChunk];  // exp(cum_i): state before the chunk -> token i
  T to_end[kChunk];      // exp(cum_last - cum_i): token i -> state after the chunk
  T dt[kChunk];
  std::int64_t size;

  __device__ T whole() const { return from_start[size - 1]; }
  __device__ void set(T rate, Rows<const T> steps, std::int64_t tokens) {
    __syncthreads();  // the last chunk's are no longer read
    for (std::int64_t i = threadIdx.x; i < tokens; i += blockDim.x) dt[i] = *steps[i];
    __syncthreads();
    if (threadIdx.x == 0) {
      size = tokens;
      double sum = 0;
      for (std::int64_t i = 0; i < tokens; ++i) {
        sum += static_cast<double>(rate) * static_cast<double>(dt[i]);
        cum[i] = static_cast<T>(sum);
      }
    }
    __syncthreads();
    for (std::int64_t i = threadIdx.x; i < tokens; i += blockDim.x) {
      from_start[i] = exp(cum[i]);
      to_end[i] = exp(cum[tokens - 1] - cum[i]);
    }
    __syncthreads();
  }
};

/// next = whole state + sum_i to_end_i dt_i k_i v_i^T; next may be state. `weighted` is scratch, (chunk, p).
template <class T>
__device__ void advance_state(const Decays<T>& d, Rows<const T> k, Rows<const T> v, std::int64_t n,
                              std::int64_t p, T* weighted, const T* state, T* next) {
  each_element(d.size, p, [&](auto i, auto j) { weighted[i * p + j] = d.to_end[i] * d.dt[i] * v[i][j]; });
  if (next != state) each_element(n, p, [&](auto i, auto j) { next[i * p + j] = state[i * p + j]; });
  multiply<T>(n, p, d.size, transposed(k), {weighted, p}, d.whole(), {next, p});
}

/// into[h] += sum over sequences of sums (b, h), in order.
template <class T>
__global__ void add_over_batch(const double* sums, std::int64_t b, std::int64_t heads, T* into) {
  const std::int64_t h = global_index();
  if (h >= heads) return;
  for (std::int64_t i = 0; i < b; ++i) into[h] += static_cast<T>(sums[i * heads + h]);
}

}  // namespace transmamba::cuda
