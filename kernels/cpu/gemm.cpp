#include "kernels/gemm.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/blas.h"
#include "kernels/cpu/parallel_for.h"
#include "kernels/elementwise.h"

namespace transmamba::cpu {
namespace {

struct Grid {
  std::int64_t rows, columns;  ///< of one tile of C
};

std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

/// Cuts the longer side of the tile in two while tiles are big enough to pay for packing their operands
/// again. Depends on the shape only, so that results do not depend on the number of threads.
Grid choose_grid(std::int64_t m, std::int64_t n, std::int64_t k) {
  constexpr std::int64_t kMostTiles = 16, kSmallestSide = 128, kMultiple = 16;
  constexpr double kFewestFlops = 1e8;
  const double flops = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  std::int64_t down = 1, across = 1;
  while (2 * down * across <= kMostTiles && flops >= kFewestFlops * static_cast<double>(2 * down * across)) {
    std::int64_t& pieces = m * across >= n * down ? down : across;  // m / down >= n / across
    if ((m * across >= n * down ? m : n) < 2 * pieces * kSmallestSide) break;
    pieces *= 2;
  }
  const auto even = [](std::int64_t side, std::int64_t pieces) {
    return round_up((side + pieces - 1) / pieces, kMultiple);
  };
  return {even(m, down), even(n, across)};
}

/// C = beta C, for k = 0: BLAS may return early.
template <class T>
void scale(const View& c, double beta) {
  for (std::int64_t i = 0; i < c.dim(0); ++i) {
    T* const row = c.ptr<T>(i);
    for (std::int64_t j = 0; j < c.dim(1); ++j) row[j] = beta == 0 ? T(0) : static_cast<T>(beta) * row[j];
  }
}

/// A leading dimension as BLAS wants it; the stride of a single row means nothing.
std::int64_t leading(const ConstView& x) {
  const std::int64_t stride = x.dim(0) > 1 ? x.stride(0) : std::max<std::int64_t>(1, x.dim(1));
  check(std::max(stride, x.dim(0)) <= std::numeric_limits<int>::max(), "gemm",
        "BLAS counts in 32 bits, got shape {} with strides {}", x.shape(), x.strides());
  return stride;
}

template <class T>
void run(const Gemm& g, const Stream& stream) {
  const std::int64_t m = g.c.dim(0), n = g.c.dim(1), k = g.a.dim(g.transpose_a ? 0 : 1);
  if (m == 0 || n == 0) return;
  if (k == 0) return scale<T>(g.c, g.beta);
  const std::int64_t lda = leading(g.a), ldb = leading(g.b), ldc = leading(g.c);
  const T* const a = g.a.ptr<T>();
  const T* const b = g.b.ptr<T>();
  T* const c = g.c.ptr<T>();
  // Strides of op(A) along m and of op(B) along n; 64-bit, unlike BLAS's own arithmetic.
  const std::int64_t a_step = g.transpose_a ? 1 : lda, b_step = g.transpose_b ? ldb : 1;

  const Grid tile = choose_grid(m, n, k);
  const std::int64_t across = (n + tile.columns - 1) / tile.columns, down = (m + tile.rows - 1) / tile.rows;
  parallel_for(down * across, stream, [&](std::int64_t index) {
    const std::int64_t i = index / across * tile.rows, j = index % across * tile.columns;
    blas_gemm(g.transpose_a, g.transpose_b, std::min(tile.rows, m - i), std::min(tile.columns, n - j), k,
              T(1), a + i * a_step, lda, b + j * b_step, ldb, static_cast<T>(g.beta), c + i * ldc + j, ldc);
  });
}

}  // namespace

void gemm(const Gemm& arguments, const Stream& stream) {
  prepare_blas();
  if (arguments.addend && arguments.beta != 0 && arguments.addend.raw() != arguments.c.raw())
    cpu::copy({.x = arguments.addend, .y = arguments.c}, stream);  // BLAS adds in place
  with_float(arguments.c.dtype(), "gemm", [&](auto zero) { run<decltype(zero)>(arguments, stream); });
}

}  // namespace transmamba::cpu
