// Plain kernels for float32 and float64; attention_bf16.cu is for bfloat16. A warp owns a row of the result:
// a query forward and for dq, a key for dk and dv. The rows of a block share tiles of the other side in
// shared memory, one row of a tile a lane. Nothing is added by two warps, so results have the same bits every
// time.
#include "kernels/attention.h"

#include <cmath>

#include "kernels/cuda/attention_bf16.cuh"
#include "kernels/cuda/device.cuh"

namespace transmamba::cuda {
namespace {

constexpr int kTile = kWarp;  // rows of a tile
constexpr int kRows = 8;      // warps of a block

/// One row of a tile a lane: padded, so that lanes use different banks.
std::int64_t padded(std::int64_t width) { return width + 1; }

template <class T>
struct Forward {
  Strided<const T> q, k, v;
  Strided<T> o, lse;
  std::int64_t tq, tk, heads, n, p, offset, blocks;  // blocks of rows a head
  T scale;
  bool continues;
};
template <class T>
struct Backward {
  Strided<const T> dout, q, k, v, o, lse;
  Strided<T> dq, dk, dv;
  T* dot;  // (b, h, tq): sum_j P_ij dP_ij = dout_i . o_i
  std::int64_t tq, tk, heads, n, p, offset, blocks;
  T scale;
  bool accumulate, accumulate_dq;
};

/// Which head and which row this warp owns.
struct Owner {
  std::int64_t b, h, first, row;  // the block's first row
  template <class Arguments>
  __device__ explicit Owner(const Arguments& a)
      : b(blockIdx.x / a.blocks / a.heads),
        h(blockIdx.x / a.blocks % a.heads),
        first(blockIdx.x % a.blocks * kRows),
        row(first + threadIdx.x / kWarp) {}
};

/// Rows [begin, end) of x (t, width) of one head, at most kTile of them, to shared memory; zeros after `end`.
template <class T>
__device__ void load_tile(const Strided<const T>& x, const Owner& at, std::int64_t begin, std::int64_t end,
                          std::int64_t width, std::int64_t step, T* tile) {
  for (std::int64_t i = threadIdx.x; i < kTile * width; i += blockDim.x) {
    const std::int64_t r = i / width, c = i % width;
    tile[r * step + c] = begin + r < end ? x(at.b, begin + r, at.h)[c] : T(0);
  }
}
/// This warp's own row, zeros if there is none.
template <class X, class T>
__device__ void load_row(const Strided<X>& x, const Owner& at, bool exists, std::int64_t width, T* row) {
  for (std::int64_t c = threadIdx.x % kWarp; c < width; c += kWarp)
    row[c] = exists ? x(at.b, at.row, at.h)[c] : T(0);
}
template <class T>
__device__ void clear_row(T* row, std::int64_t width) {
  for (std::int64_t c = threadIdx.x % kWarp; c < width; c += kWarp) row[c] = T(0);
}
template <class T>
__device__ void store_row(const T* row, T factor, T* out, std::int64_t width) {
  for (std::int64_t c = threadIdx.x % kWarp; c < width; c += kWarp) out[c] = row[c] * factor;
}
template <class T>
__device__ void add_row(const T* row, T* out, std::int64_t width) {
  for (std::int64_t c = threadIdx.x % kWarp; c < width; c += kWarp) out[c] += row[c];
}
template <class T>
__device__ T dot(const T* x, const T* y, std::int64_t n) {
  T sum = 0;
  for (std::int64_t c = 0; c < n; ++c) sum += x[c] * y[c];
  return sum;
}
/// row = shrink row + sum over the tile's rows of weight (one a lane) tile. A lane owns columns of the row.
template <class T>
__device__ void add_tile(T* row, T shrink, T weight, const T* tile, std::int64_t step, std::int64_t width) {
  const int lane = threadIdx.x % kWarp;
  for (std::int64_t begin = 0; begin < width; begin += kWarp) {  // all lanes shuffle
    const std::int64_t c = begin + lane;
    T sum = 0;
    for (int r = 0; r < kTile; ++r) {
      const T w = __shfl_sync(0xffffffffu, weight, r);
      if (c < width) sum += w * tile[r * step + c];
    }
    if (c < width) row[c] = row[c] * shrink + sum;
  }
}

template <class T>
__device__ T* shared_memory() {
  extern __shared__ double memory[];
  return reinterpret_cast<T*>(memory);
}

template <class T>
__global__ void forward(Forward<T> a) {
  const Owner at(a);
  const std::int64_t n = a.n, p = a.p, k_step = n + 1, v_step = p + 1, warp = threadIdx.x / kWarp;
  T* const keys = shared_memory<T>();
  T* const values = keys + kTile * k_step;
  T* const q = values + kTile * v_step + warp * n;
  T* const out = values + kTile * v_step + kRows * n + warp * p;
  const int lane = threadIdx.x % kWarp;
  const bool exists = at.row < a.tq;
  load_row(a.q, at, exists, n, q);
  load_row(a.o, at, exists && a.continues, p, out);
  // What came before is as one more key, of score lse and value o.
  T top = exists && a.continues ? *a.lse(at.b, at.h, at.row) : -static_cast<T>(INFINITY);
  T total = a.continues ? T(1) : T(0);

  const std::int64_t seen = min(a.tk, at.first + kRows + a.offset);  // by the block's last query
  for (std::int64_t begin = 0; begin < seen; begin += kTile) {
    __syncthreads();
    load_tile(a.k, at, begin, seen, n, k_step, keys);
    load_tile(a.v, at, begin, seen, p, v_step, values);
    __syncthreads();
    const std::int64_t j = begin + lane;
    const bool live = exists && j < seen && j <= at.row + a.offset;
    const T score = live ? a.scale * dot(q, keys + lane * k_step, n) : -static_cast<T>(INFINITY);
    // A query sees key 0, so `high` is finite from the first tile on.
    const T high = exists ? Larger{}(top, warp_reduce<Larger>(score)) : T(0);
    const T shrink = exp(top - high), weight = live ? exp(score - high) : T(0);
    total = total * shrink + warp_reduce<Plus>(weight);
    top = high;
    add_tile(out, shrink, weight, values, v_step, p);
  }
  if (!exists) return;
  store_row(out, T(1) / total, a.o(at.b, at.row, at.h), p);
  if (lane == 0) *a.lse(at.b, at.h, at.row) = top + log(total);
}

/// A warp a query.
template <class T>
__global__ void row_dots(Backward<T> a) {
  const Owner at(a);
  if (at.row >= a.tq) return;
  const T *dy = a.dout(at.b, at.row, at.h), *y = a.o(at.b, at.row, at.h);
  T sum = 0;
  for (std::int64_t c = threadIdx.x % kWarp; c < a.p; c += kWarp) sum += dy[c] * y[c];
  sum = warp_reduce<Plus>(sum);
  if (threadIdx.x % kWarp == 0) a.dot[(at.b * a.heads + at.h) * a.tq + at.row] = sum;
}

template <class T>
__global__ void query_gradient(Backward<T> a) {
  const Owner at(a);
  const std::int64_t n = a.n, p = a.p, k_step = n + 1, v_step = p + 1, warp = threadIdx.x / kWarp;
  T* const keys = shared_memory<T>();
  T* const values = keys + kTile * k_step;
  T* const rows = values + kTile * v_step + warp * (2 * n + p);
  T *const q = rows, *const dq = rows + n, *const dout = rows + 2 * n;
  const int lane = threadIdx.x % kWarp;
  const bool exists = at.row < a.tq;
  load_row(a.q, at, exists, n, q);
  load_row(a.dout, at, exists, p, dout);
  clear_row(dq, n);
  const T lse = exists ? *a.lse(at.b, at.h, at.row) : T(0);
  const T mean = exists ? a.dot[(at.b * a.heads + at.h) * a.tq + at.row] : T(0);

  const std::int64_t seen = min(a.tk, at.first + kRows + a.offset);
  for (std::int64_t begin = 0; begin < seen; begin += kTile) {
    __syncthreads();
    load_tile(a.k, at, begin, seen, n, k_step, keys);
    load_tile(a.v, at, begin, seen, p, v_step, values);
    __syncthreads();
    const std::int64_t j = begin + lane;
    const bool live = exists && j < seen && j <= at.row + a.offset;
    T dscore = 0;
    if (live)
      dscore = exp(a.scale * dot(q, keys + lane * k_step, n) - lse) *
               (dot(dout, values + lane * v_step, p) - mean) * a.scale;
    add_tile(dq, T(1), dscore, keys, k_step, n);
  }
  if (!exists) return;
  if (a.accumulate_dq)
    add_row(dq, a.dq(at.b, at.row, at.h), n);
  else
    store_row(dq, T(1), a.dq(at.b, at.row, at.h), n);
}

template <class T>
__global__ void key_gradient(Backward<T> a) {
  const Owner at(a);
  const std::int64_t n = a.n, p = a.p, q_step = n + 1, dout_step = p + 1, warp = threadIdx.x / kWarp;
  T* const queries = shared_memory<T>();
  T* const douts = queries + kTile * q_step;
  T* const rows = douts + kTile * dout_step + warp * 2 * (n + p);
  T *const k = rows, *const dk = k + n, *const v = dk + n, *const dv = v + p;
  const int lane = threadIdx.x % kWarp;
  const bool exists = at.row < a.tk;
  load_row(a.k, at, exists, n, k);
  load_row(a.v, at, exists, p, v);
  clear_row(dk, n);
  clear_row(dv, p);

  // Query i sees key j where j <= i + offset.
  for (std::int64_t begin = max(std::int64_t{0}, at.first - a.offset); begin < a.tq; begin += kTile) {
    __syncthreads();
    load_tile(a.q, at, begin, a.tq, n, q_step, queries);
    load_tile(a.dout, at, begin, a.tq, p, dout_step, douts);
    __syncthreads();
    const std::int64_t i = begin + lane;
    T weight = 0, dscore = 0;
    if (exists && i < a.tq && at.row <= i + a.offset) {
      weight = exp(a.scale * dot(k, queries + lane * q_step, n) - *a.lse(at.b, at.h, i));
      const T mean = a.dot[(at.b * a.heads + at.h) * a.tq + i];
      dscore = weight * (dot(v, douts + lane * dout_step, p) - mean) * a.scale;
    }
    add_tile(dk, T(1), dscore, queries, q_step, n);
    add_tile(dv, T(1), weight, douts, dout_step, p);
  }
  if (!exists) return;
  if (a.accumulate) {
    add_row(dk, a.dk(at.b, at.row, at.h), n);
    add_row(dv, a.dv(at.b, at.row, at.h), p);
  } else {
    store_row(dk, T(1), a.dk(at.b, at.row, at.h), n);
    store_row(dv, T(1), a.dv(at.b, at.row, at.h), p);
  }
}

std::int64_t blocks_of(std::int64_t rows) { return (rows + kRows - 1) / kRows; }

/// `own`: elements of a warp's own rows.
template <class T>
Grid grid_of(std::int64_t blocks, std::int64_t n, std::int64_t p, std::int64_t own) {
  const std::int64_t elements = kTile * (padded(n) + padded(p)) + kRows * own;
  return {blocks, kRows * kWarp, static_cast<std::size_t>(elements) * sizeof(T)};
}

}  // namespace

void attention(const Attention& a, const Stream& stream) {
  if (a.q.dtype() == DType::bf16) return attention_bf16(a, stream);
  dispatch_float(a.q.dtype(), "attention", [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t b = a.q.dim(0), tq = a.q.dim(1), h = a.q.dim(2), n = a.q.dim(3), p = a.v.dim(3);
    const std::int64_t blocks = blocks_of(tq);
    const Forward<T> arguments{strided<const T>(a.q),
                               strided<const T>(a.k),
                               strided<const T>(a.v),
                               strided<T>(a.o),
                               strided<T>(a.lse),
                               tq,
                               a.k.dim(1),
                               h,
                               n,
                               p,
                               a.offset,
                               blocks,
                               T(1) / std::sqrt(static_cast<T>(n)),
                               a.continues};
    launch("attention", stream, grid_of<T>(b * h * blocks, n, p, n + p), forward<T>, arguments);
  });
}

void attention_backward(const AttentionBackward& a, const Stream& stream) {
  if (a.q.dtype() == DType::bf16) return attention_backward_bf16(a, stream);
  constexpr auto op = "attention_backward";
  dispatch_float(a.q.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    const std::int64_t b = a.q.dim(0), tq = a.q.dim(1), h = a.q.dim(2), n = a.q.dim(3), p = a.v.dim(3);
    const std::int64_t tk = a.k.dim(1);
    const Workspace<T> dot(b * h * tq, stream, op);
    Backward<T> arguments{strided<const T>(a.dout),
                          strided<const T>(a.q),
                          strided<const T>(a.k),
                          strided<const T>(a.v),
                          strided<const T>(a.o),
                          strided<const T>(a.lse),
                          strided<T>(a.dq),
                          strided<T>(a.dk),
                          strided<T>(a.dv),
                          dot.data(),
                          tq,
                          tk,
                          h,
                          n,
                          p,
                          a.offset,
                          blocks_of(tq),
                          T(1) / std::sqrt(static_cast<T>(n)),
                          a.accumulate,
                          a.accumulate_dq};
    launch(op, stream, {b * h * arguments.blocks, kRows * kWarp}, row_dots<T>, arguments);
    launch(op, stream, grid_of<T>(b * h * arguments.blocks, n, p, 2 * n + p), query_gradient<T>, arguments);
    arguments.blocks = blocks_of(tk);
    launch(op, stream, grid_of<T>(b * h * arguments.blocks, n, p, 2 * (n + p)), key_gradient<T>, arguments);
  });
}

}  // namespace transmamba::cuda
