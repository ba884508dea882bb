// Attention in tiles: a tile of scores is the only quadratic thing that exists, block x block numbers a
// thread.
#include "kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/blas.h"
#include "kernels/cpu/parallel_for.h"
#include "kernels/cpu/vector_math.h"

namespace transmamba::cpu {
namespace {

constexpr std::int64_t kQueryBlock = 64;
constexpr std::int64_t kKeyBlock = 128;

/// Keys [0, visible) of a block that starts at key `j0` are seen by query `i`.
std::int64_t visible(std::int64_t i, std::int64_t offset, std::int64_t j0, std::int64_t keys) {
  return std::clamp<std::int64_t>(i + offset + 1 - j0, 0, keys);
}

/// One block of queries of one head against all the keys it sees. What came before, (lse, o), is as one more
/// key: its score is lse and its value o.
template <class T>
void forward_block(const Attention& a, std::int64_t b, std::int64_t h, std::int64_t i0, std::int64_t i1) {
  const std::int64_t n = a.q.dim(3), p = a.v.dim(3), rows = i1 - i0;
  const std::int64_t seen = std::min(a.k.dim(1), i1 + a.offset);
  const T scale = T(1) / std::sqrt(static_cast<T>(n));
  std::vector<T> scores(static_cast<std::size_t>(rows * kKeyBlock)), out(static_cast<std::size_t>(rows * p));
  std::vector<T> top(static_cast<std::size_t>(rows), -std::numeric_limits<T>::infinity()),
      total(static_cast<std::size_t>(rows), T(a.continues ? 1 : 0));
  for (std::int64_t r = 0; r < rows && a.continues; ++r) {
    top[static_cast<std::size_t>(r)] = *a.lse.ptr<T>(b, h, i0 + r);
    std::copy_n(a.o.ptr<T>(b, i0 + r, h), p, out.data() + r * p);
  }

  for (std::int64_t j0 = 0; j0 < seen; j0 += kKeyBlock) {
    const std::int64_t keys = std::min(kKeyBlock, seen - j0);
    blas_gemm(false, true, rows, keys, n, scale, a.q.ptr<T>(b, i0, h), a.q.stride(1), a.k.ptr<T>(b, j0, h),
              a.k.stride(1), T(0), scores.data(), kKeyBlock);
    for (std::int64_t r = 0; r < rows; ++r) {
      T* s = scores.data() + r * kKeyBlock;
      T* o = out.data() + r * p;
      T &m = top[static_cast<std::size_t>(r)], &l = total[static_cast<std::size_t>(r)];
      const std::int64_t live = visible(i0 + r, a.offset, j0, keys);
      if (live > 0) {
        T high = m;
#pragma omp simd reduction(max : high)
        for (std::int64_t j = 0; j < live; ++j) high = std::max(high, s[j]);
        const T shrink = j0 == 0 && !a.continues ? T(0) : exp_or_zero(m - high);
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (std::int64_t j = 0; j < live; ++j) sum += s[j] = exp_or_zero(s[j] - high);
        l = l * shrink + sum;
        m = high;
        for (std::int64_t c = 0; c < p; ++c) o[c] *= shrink;
      }
      std::fill(s + live, s + keys, T(0));
    }
    blas_gemm(false, false, rows, p, keys, T(1), scores.data(), kKeyBlock, a.v.ptr<T>(b, j0, h),
              a.v.stride(1), T(1), out.data(), p);
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    const T l = total[static_cast<std::size_t>(r)], inverse = T(1) / l;
    T* y = a.o.ptr<T>(b, i0 + r, h);
    for (std::int64_t c = 0; c < p; ++c) y[c] = out[static_cast<std::size_t>(r * p + c)] * inverse;
    *a.lse.ptr<T>(b, h, i0 + r) = top[static_cast<std::size_t>(r)] + std::log(l);
  }
}

/// All gradients of one head.
template <class T>
void backward_head(const AttentionBackward& a, std::int64_t b, std::int64_t h) {
  const std::int64_t tq = a.q.dim(1), tk = a.k.dim(1), n = a.q.dim(3), p = a.v.dim(3);
  const T scale = T(1) / std::sqrt(static_cast<T>(n));
  std::vector<T> prob(static_cast<std::size_t>(kQueryBlock * kKeyBlock)), dscore(prob.size()),
      dot(static_cast<std::size_t>(tq));

  for (std::int64_t i = 0; i < tq; ++i) {  // dot_i = sum_j P_ij dP_ij = dout_i . o_i
    const T *dy = a.dout.ptr<T>(b, i, h), *y = a.o.ptr<T>(b, i, h);
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t c = 0; c < p; ++c) sum += dy[c] * y[c];
    dot[static_cast<std::size_t>(i)] = sum;
    if (!a.accumulate_dq) std::fill_n(a.dq.ptr<T>(b, i, h), n, T(0));
  }
  for (std::int64_t j0 = 0; j0 < tk; j0 += kKeyBlock) {
    const std::int64_t keys = std::min(kKeyBlock, tk - j0);
    for (std::int64_t j = j0; j < j0 + keys && !a.accumulate; ++j) {
      std::fill_n(a.dk.ptr<T>(b, j, h), n, T(0));
      std::fill_n(a.dv.ptr<T>(b, j, h), p, T(0));
    }
    const T *k = a.k.ptr<T>(b, j0, h), *v = a.v.ptr<T>(b, j0, h);
    const std::int64_t first = std::max<std::int64_t>(0, j0 - a.offset);  // first query that sees key j0
    for (std::int64_t i0 = first; i0 < tq; i0 += kQueryBlock) {
      const std::int64_t rows = std::min(kQueryBlock, tq - i0);
      const T *q = a.q.ptr<T>(b, i0, h), *dy = a.dout.ptr<T>(b, i0, h);
      blas_gemm(false, true, rows, keys, n, scale, q, a.q.stride(1), k, a.k.stride(1), T(0), prob.data(),
                kKeyBlock);
      blas_gemm(false, true, rows, keys, p, T(1), dy, a.dout.stride(1), v, a.v.stride(1), T(0), dscore.data(),
                kKeyBlock);
      for (std::int64_t r = 0; r < rows; ++r) {
        T *s = prob.data() + r * kKeyBlock, *ds = dscore.data() + r * kKeyBlock;
        const T lse = *a.lse.ptr<T>(b, h, i0 + r), sum = dot[static_cast<std::size_t>(i0 + r)];
        const std::int64_t live = visible(i0 + r, a.offset, j0, keys);
#pragma omp simd
        for (std::int64_t j = 0; j < live; ++j) {
          s[j] = exp_or_zero(s[j] - lse);
          ds[j] = s[j] * (ds[j] - sum) * scale;
        }
        std::fill(s + live, s + keys, T(0));
        std::fill(ds + live, ds + keys, T(0));
      }
      blas_gemm(true, false, keys, p, rows, T(1), prob.data(), kKeyBlock, dy, a.dout.stride(1), T(1),
                a.dv.ptr<T>(b, j0, h), a.dv.stride(1));
      blas_gemm(true, false, keys, n, rows, T(1), dscore.data(), kKeyBlock, q, a.q.stride(1), T(1),
                a.dk.ptr<T>(b, j0, h), a.dk.stride(1));
      blas_gemm(false, false, rows, n, keys, T(1), dscore.data(), kKeyBlock, k, a.k.stride(1), T(1),
                a.dq.ptr<T>(b, i0, h), a.dq.stride(1));
    }
  }
}

}  // namespace

void attention(const Attention& a, const Stream& stream) {
  prepare_blas();
  const std::int64_t heads = a.q.dim(2), tq = a.q.dim(1), blocks = (tq + kQueryBlock - 1) / kQueryBlock;
  with_float(a.q.dtype(), "attention", [&](auto type) {
    parallel_for(a.q.dim(0) * heads * blocks, stream, [&](std::int64_t item) {
      const std::int64_t block = blocks - 1 - item % blocks;  // the longest rows first
      forward_block<decltype(type)>(a, item / blocks / heads, item / blocks % heads, block * kQueryBlock,
                                    std::min(tq, (block + 1) * kQueryBlock));
    });
  });
}

void attention_backward(const AttentionBackward& a, const Stream& stream) {
  prepare_blas();
  const std::int64_t heads = a.q.dim(2);
  with_float(a.q.dtype(), "attention_backward", [&](auto type) {
    parallel_for(a.q.dim(0) * heads, stream,
                 [&](std::int64_t item) { backward_head<decltype(type)>(a, item / heads, item % heads); });
  });
}

}  // namespace transmamba::cpu
