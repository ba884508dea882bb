// What kernel tests share: random and poisoned arrays of every layout, comparison, gradients by differences.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "device_memory.h"
#include "kernels/types.h"

namespace transmamba::testing {

/// `strided` is a slice in every dim, with rows that begin anywhere; `padded` in the last dim only, with rows
/// that begin at multiples of 16 bytes where the last dim is one of 8 elements.
enum class Layout { contiguous, strided, padded };

/// The one table of tolerances: |actual - expected| <= tolerance * (1 + |expected|). bfloat16 rounds by 2e-3.
inline double tolerance(DType dtype) {
  return dtype == DType::f64 ? 1e-12 : dtype == DType::bf16 ? 5e-3 : 2e-5;
}
/// Of central differences in float64, whose own error is about cbrt(epsilon)^2.
constexpr double kGradientTolerance = 2e-8;

inline double get(const ConstView& x, const std::vector<std::int64_t>& at) {
  std::int64_t offset = 0;
  for (std::size_t i = 0; i < at.size(); ++i) offset += at[i] * x.stride(static_cast<int>(i));
  if (x.dtype() == DType::f32) return x.ptr<float>()[offset];
  if (x.dtype() == DType::f64) return x.ptr<double>()[offset];
  if (x.dtype() == DType::bf16) return to_float(x.ptr<bfloat16>()[offset]);
  return x.ptr<std::int32_t>()[offset];
}
inline void set(const View& x, const std::vector<std::int64_t>& at, double value) {
  std::int64_t offset = 0;
  for (std::size_t i = 0; i < at.size(); ++i) offset += at[i] * x.stride(static_cast<int>(i));
  if (x.dtype() == DType::f32) return void(x.ptr<float>()[offset] = static_cast<float>(value));
  if (x.dtype() == DType::f64) return void(x.ptr<double>()[offset] = value);
  if (x.dtype() == DType::bf16)
    return void(x.ptr<bfloat16>()[offset] = to_bfloat16(static_cast<float>(value)));
  x.ptr<std::int32_t>()[offset] = static_cast<std::int32_t>(value);
}

/// f(index) for every index of a shape, the last dim fastest.
inline void for_each_index(const Shape& shape, const std::function<void(std::vector<std::int64_t>&)>& f) {
  std::vector<std::int64_t> at(static_cast<std::size_t>(shape.rank()));
  for (std::int64_t flat = 0; flat < shape.numel(); ++flat) {
    std::int64_t rest = flat;
    for (int i = shape.rank() - 1; i >= 0; rest /= shape[i--])
      at[static_cast<std::size_t>(i)] = rest % shape[i];
    f(at);
  }
}

inline void fill_with(const View& x, double value) {
  for_each_index(x.shape(), [&](auto& at) { set(x, at, value); });
}

/// Memory and a view of it, poisoned with NaN (int32: -1). `strided` and `padded` are slices of a larger
/// array: dims have neighbours on both sides, whose poison must never be read nor overwritten.
class Array {
 public:
  Array() = default;  // absent
  Array(const Shape& shape, DType dtype, Layout layout = Layout::contiguous, Device device = Device::cpu) {
    Shape whole = shape;
    const auto margin = [&](int dim) -> std::int64_t {
      return layout == Layout::strided ? 1 : layout == Layout::padded && dim == shape.rank() - 1 ? 8 : 0;
    };
    for (int i = 0; i < shape.rank(); ++i) whole[i] += 2 * margin(i);
    bytes_ = static_cast<std::size_t>((whole.numel() + 1) * size_of(dtype));
    memory_ = device == Device::cuda ? gpu_visible_memory(bytes_)
                                     : std::shared_ptr<std::byte>(new std::byte[bytes_],
                                                                  [](std::byte* memory) { delete[] memory; });
    std::memset(memory_.get(), 0, bytes_);
    whole_ = view_ = View(memory_.get(), dtype, whole);
    for (int i = 0; i < shape.rank(); ++i) view_ = view_.slice(i, margin(i), margin(i) + shape[i]);
    fill_poison(whole_);
  }
  operator View() const { return view_; }       // NOLINT: an array is a view
  operator ConstView() const { return view_; }  // NOLINT
  const View* operator->() const { return &view_; }
  double operator()(std::vector<std::int64_t> at) const { return get(view_, at); }

  void fill_poison() const { fill_poison(view_); }
  void assign(const ConstView& other) const {
    for_each_index(view_.shape(), [&](auto& at) { set(view_, at, get(other, at)); });
  }
  /// Every bit of the memory, neighbours included.
  std::string_view bytes() const { return {reinterpret_cast<const char*>(memory_.get()), bytes_}; }
  /// Whether everything outside the view is still poison.
  bool neighbours_untouched() const {
    Array copy(view_.shape(), view_.dtype());
    copy.assign(view_);
    fill_poison();
    bool poison = true;
    for_each_index(whole_.shape(), [&](auto& at) {
      const double value = get(whole_, at);
      poison &= whole_.dtype() == DType::i32 ? value == -1 : std::isnan(value);
    });
    assign(copy);
    return poison;
  }

 private:
  static void fill_poison(const View& x) {
    const double poison = x.dtype() == DType::i32 ? -1 : std::numeric_limits<double>::quiet_NaN();
    for_each_index(x.shape(), [&](auto& at) { set(x, at, poison); });
  }
  std::shared_ptr<std::byte> memory_;
  std::size_t bytes_ = 0;
  View whole_, view_;
};

/// A stream that a call has finished with when it returns: each argument made from it waits when it is
/// destroyed.
struct TestStream {
  Device device = Device::cpu;
  int threads = 1;

  struct Argument : Stream {
    explicit Argument(const Stream& stream) : Stream(stream) {}
    Argument(const Argument&) = delete;
    ~Argument() {
      if (device == Device::cuda) wait_for_gpu();
    }
  };
  operator Argument() const { return Argument({device, threads, nullptr}); }  // NOLINT
};

/// One way to run a kernel.
struct Variant {
  DType dtype = DType::f64;
  Layout layout = Layout::contiguous;
  TestStream stream;
};
/// Every backend that can run here, the CPU's first.
inline std::vector<TestStream> streams(std::vector<int> cpu_threads = {1}) {
  std::vector<TestStream> all;
  for (int threads : cpu_threads) all.push_back({Device::cpu, threads});
  if (has_gpu()) all.push_back({Device::cuda});
  return all;
}
inline std::vector<Variant> variants() {
  std::vector<Variant> all;
  for (DType dtype : {DType::f64, DType::f32})
    for (Layout layout : {Layout::contiguous, Layout::strided})
      for (const TestStream& stream : streams({1, 2})) all.push_back({dtype, layout, stream});
  return all;
}
/// Those of the CPU, for what it alone has.
inline std::vector<Variant> cpu_variants() {
  std::vector<Variant> all;
  for (const Variant& variant : variants())
    if (variant.stream.device == Device::cpu) all.push_back(variant);
  return all;
}
/// Two runs that must give the same bits: on one thread and on two, and on a GPU twice.
inline std::vector<std::pair<Variant, Variant>> repeats(DType dtype = DType::f32,
                                                        Layout layout = Layout::contiguous) {
  std::vector<std::pair<Variant, Variant>> all;
  for (const TestStream& stream : streams())
    all.push_back({{dtype, layout, stream}, {dtype, layout, {stream.device, 2}}});
  return all;
}

/// Arrays of one variant. Equal seeds give equal numbers in every variant: they are rounded to float32.
class Arrays {
 public:
  explicit Arrays(const Variant& variant, unsigned seed = 1) : variant_(variant), generator_(seed) {}
  Array poisoned(const Shape& shape) { return make(shape, variant_.dtype, variant_.layout); }
  /// Contiguous in every variant, and of any type.
  Array dense(const Shape& shape) { return make(shape, variant_.dtype, Layout::contiguous); }
  Array dense(const Shape& shape, DType dtype) { return make(shape, dtype, Layout::contiguous); }
  Array normal(const Shape& shape, double scale = 1) {
    Array out = poisoned(shape);
    std::normal_distribution<double> distribution(0, scale);
    for_each_index(shape, [&](auto& at) { set(out, at, static_cast<float>(distribution(generator_))); });
    return out;
  }
  Array uniform(const Shape& shape, double low, double high) {
    Array out = poisoned(shape);
    std::uniform_real_distribution<double> distribution(low, high);
    for_each_index(shape, [&](auto& at) { set(out, at, static_cast<float>(distribution(generator_))); });
    return out;
  }
  Array tokens(const Shape& shape, int vocab) {
    Array out = make(shape, DType::i32, variant_.layout);
    std::uniform_int_distribution<int> distribution(0, vocab - 1);
    for_each_index(shape, [&](auto& at) { set(out, at, distribution(generator_)); });
    return out;
  }

 private:
  Array make(const Shape& shape, DType dtype, Layout layout) const {
    return Array(shape, dtype, layout, variant_.stream.device);
  }
  Variant variant_;
  std::mt19937 generator_;
};

using Expected = std::function<double(std::vector<std::int64_t>&)>;

/// Compares with `expected(index)` and prints the first bad coordinates.
inline ::testing::AssertionResult near(const Array& actual, double allowed, const Expected& expected) {
  int bad = 0;
  std::string first;
  for_each_index(actual->shape(), [&](auto& at) {
    const double a = get(actual, at), e = expected(at);
    if (std::abs(a - e) <= allowed * (1 + std::abs(e))) return;  // NaN goes on
    if (bad++ < 3) {
      first += "\n  at (";
      for (std::size_t i = 0; i < at.size(); ++i) first += (i ? ", " : "") + std::to_string(at[i]);
      first += fmt::format("): {:.9g}, expected {:.9g}", a, e);
    }
  });
  if (bad) return ::testing::AssertionFailure() << bad << " of " << actual->numel() << " differ" << first;
  if (!actual.neighbours_untouched()) return ::testing::AssertionFailure() << "wrote outside the view";
  return ::testing::AssertionSuccess();
}
inline ::testing::AssertionResult near(const Array& actual, const Expected& expected) {
  return near(actual, tolerance(actual->dtype()), expected);
}

inline bool same_bits(const Array& a, const Array& b) { return a.bytes() == b.bytes(); }

/// sum over i of y_i direction_i: a scalar whose gradient with respect to y is `direction`.
inline double dot(const ConstView& y, const ConstView& direction) {
  double sum = 0;
  for_each_index(y.shape(), [&](auto& at) { sum += get(y, at) * get(direction, at); });
  return sum;
}

/// Whether `gradient` is that of loss() with respect to float64 `x`, by central differences of fourth order.
inline ::testing::AssertionResult is_gradient(const Array& gradient, const Array& x,
                                              const std::function<double()>& loss) {
  constexpr double kStep = 1e-3;
  return near(gradient, kGradientTolerance, [&](auto& at) {
    const double value = get(x, at);
    const auto shifted = [&](double shift) {
      set(x, at, value + shift);
      return loss();
    };
    const double slope =
        (8 * (shifted(kStep) - shifted(-kStep)) - (shifted(2 * kStep) - shifted(-2 * kStep))) / (12 * kStep);
    set(x, at, value);
    return slope;
  });
}

/// Whether f() throws an Error whose text has each of `words`.
inline ::testing::AssertionResult fails_naming(const std::function<void()>& f,
                                               const std::vector<std::string>& words) {
  try {
    f();
  } catch (const Error& error) {
    for (const std::string& word : words)
      if (std::string(error.what()).find(word) == std::string::npos)
        return ::testing::AssertionFailure() << "\"" << error.what() << "\" does not say \"" << word << "\"";
    return ::testing::AssertionSuccess();
  }
  return ::testing::AssertionFailure() << "no Error";
}

}  // namespace transmamba::testing
