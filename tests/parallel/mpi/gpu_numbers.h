// Small integers in GPU memory, whose sums every type holds exactly.
#pragma once

#include <functional>
#include <vector>

#include "core/tensor.h"

namespace transmamba {

using Numbers = std::vector<double>;
inline constexpr DType kTypes[] = {DType::f32, DType::f64, DType::bf16, DType::i32};

/// Small integers, which bfloat16 and their sums over 8 ranks hold exactly.
inline double number(int seed, std::int64_t i) { return static_cast<double>((seed * 5 + i * 3) % 8); }
inline Numbers numbers(int seed, std::int64_t count) {
  Numbers x(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) x[static_cast<std::size_t>(i)] = number(seed, i);
  return x;
}

template <class F>
void each_typed(const Tensor& host, F&& f) {
  for (std::int64_t i = 0; i < host.numel(); ++i) switch (host.dtype()) {
      case DType::f32: f(i, host.ptr<float>()[i]); break;
      case DType::f64: f(i, host.ptr<double>()[i]); break;
      case DType::i32: f(i, host.ptr<std::int32_t>()[i]); break;
      case DType::bf16: f(i, host.ptr<bfloat16>()[i]); break;
    }
}

struct GpuNumbers {
  const Context& context;

  Tensor put(const Numbers& x, DType dtype = DType::f32) const {
    const Tensor host = context.empty_host({static_cast<std::int64_t>(x.size())}, dtype);
    each_typed(host, [&]<class T>(std::int64_t i, T& to) {
      const double value = x[static_cast<std::size_t>(i)];
      if constexpr (std::is_same_v<T, bfloat16>)
        to = to_bfloat16(static_cast<float>(value));
      else
        to = static_cast<T>(value);
    });
    return to_device(context, host);
  }
  /// -1 everywhere.
  Tensor poisoned(std::int64_t count, DType dtype = DType::f32) const {
    return put(Numbers(static_cast<std::size_t>(count), -1), dtype);
  }
  void expect(const Tensor& x, const std::function<double(std::int64_t)>& wanted, const char* what) const {
    each_typed(to_host(context, x), [&]<class T>(std::int64_t i, const T& from) {
      double got = 0;
      if constexpr (std::is_same_v<T, bfloat16>)
        got = to_float(from);
      else
        got = static_cast<double>(from);
      check(got == wanted(i), "nccl", "{} of {}: element {} of {}: expected {}, got {}", what, x.dtype(), i,
            x.numel(), wanted(i), got);
    });
  }
};

}  // namespace transmamba
