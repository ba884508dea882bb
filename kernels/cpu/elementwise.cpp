#include "kernels/elementwise.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/tokens.h"

namespace transmamba::cpu {
namespace {

/// Walks one or two views of one shape as few long rows: dims that lie one after the other in memory in both
/// are joined.
class Rows {
 public:
  Rows(const ConstView& x, const ConstView& y) {
    for (int i = 0; i < x.rank(); ++i) {
      if (x.dim(i) == 1) continue;
      const int last = extent_.rank() - 1;
      if (last >= 0 && x_[last] == x.dim(i) * x.stride(i) && y_[last] == y.dim(i) * y.stride(i)) {
        extent_[last] *= x.dim(i), x_[last] = x.stride(i), y_[last] = y.stride(i);
      } else {
        extent_.append(x.dim(i)), x_.append(x.stride(i)), y_.append(y.stride(i));
      }
    }
    outer_ = extent_.rank();
    if (outer_ > 0 && x_[outer_ - 1] == 1 && y_[outer_ - 1] == 1) length_ = extent_[--outer_];
    for (int i = 0; i < outer_; ++i) rows_ *= extent_[i];
  }

  /// f(offset in x, offset in y, length) over pieces of at most kBlockElements.
  template <class F>
  void for_each(const Stream& stream, F&& f) const {
    if (rows_ == 0 || length_ == 0) return;
    const std::int64_t pieces = (length_ + kBlockElements - 1) / kBlockElements;
    const std::int64_t block = std::max<std::int64_t>(1, kBlockElements / length_);
    parallel_blocks(rows_ * pieces, block, stream, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t item = begin; item < end; ++item) {
        const std::int64_t start = item % pieces * kBlockElements;
        std::int64_t x = start, y = start, row = item / pieces;
        for (int i = outer_ - 1; i >= 0; row /= extent_[i--])
          x += row % extent_[i] * x_[i], y += row % extent_[i] * y_[i];
        f(x, y, std::min(kBlockElements, length_ - start));
      }
    });
  }

 private:
  Shape extent_, x_, y_;  // joined extents and strides
  int outer_ = 0;         // dims outside a row
  std::int64_t rows_ = 1, length_ = 1;
};

/// Also bfloat16, which files and tests want to read.
template <class F>
void with_storage(DType dtype, F&& f) {
  if (dtype == DType::bf16) return f(bfloat16{});
  with_float(dtype, "copy", f);
}

template <class From, class To>
struct Convert {
  To operator()(From x) const {
    if constexpr (std::is_same_v<From, To>)
      return x;
    else if constexpr (std::is_same_v<From, bfloat16>)
      return static_cast<To>(to_float(x));
    else if constexpr (std::is_same_v<To, bfloat16>)
      return to_bfloat16(static_cast<float>(x));
    else
      return static_cast<To>(x);
  }
};

template <class T>
void add_row(const T* x, T* y, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) y[i] += x[i];
}

template <class T>
double sum_block(const T* x, bool squares, std::int64_t n) {
  double sum = 0;
  if (squares) {
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  } else {
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]);
  }
  return sum;
}

template <class T>
void run_sum(const Sum& a, const Stream& stream) {
  const std::int64_t n = a.x.numel(), blocks = (n + kBlockElements - 1) / kBlockElements;
  if (n == 0) return;
  const T* const x = a.x.ptr<T>();
  const auto total = sum_of_partials<double>(blocks, 1, stream, [&](std::int64_t i, double* partial) {
    *partial = sum_block(x + i * kBlockElements, a.squares, std::min(kBlockElements, n - i * kBlockElements));
  });
  *a.result.ptr<double>() += total[0];
}

}  // namespace

void fill(const Fill& a, const Stream& stream) {
  with_float(a.y.dtype(), "fill", [&](auto zero) {
    using T = decltype(zero);
    T* const y = a.y.ptr<T>();
    Rows(a.y, a.y).for_each(stream, [&](std::int64_t, std::int64_t at, std::int64_t n) {
      std::fill_n(y + at, n, static_cast<T>(a.value));
    });
  });
}

void copy(const Copy& a, const Stream& stream) {
  with_storage(a.x.dtype(), [&](auto from_zero) {
    with_storage(a.y.dtype(), [&](auto to_zero) {
      using From = decltype(from_zero);
      using To = decltype(to_zero);
      const From* const x = a.x.ptr<From>();
      To* const y = a.y.ptr<To>();
      Rows(a.x, a.y).for_each(stream, [&](std::int64_t from, std::int64_t to, std::int64_t n) {
        std::transform(x + from, x + from + n, y + to, Convert<From, To>());
      });
    });
  });
}

void add(const Add& a, const Stream& stream) {
  with_float(a.x.dtype(), "add", [&](auto zero) {
    using T = decltype(zero);
    const T* const x = a.x.ptr<T>();
    T* const y = a.y.ptr<T>();
    Rows(a.x, a.y).for_each(
        stream, [&](std::int64_t from, std::int64_t to, std::int64_t n) { add_row(x + from, y + to, n); });
  });
}

void sum(const Sum& a, const Stream& stream) {
  with_float(a.x.dtype(), "sum", [&](auto zero) { run_sum<decltype(zero)>(a, stream); });
}

}  // namespace transmamba::cpu
