// Arrays of the layout that bfloat16 kernels ask for.
#pragma once

#include "testing.h"

namespace transmamba::testing {

/// GPU-visible memory and a view of it whose rows begin at multiples of 16 bytes. Every dim has poisoned
/// neighbours on both sides.
class Aligned {
 public:
  Aligned(const Shape& shape, DType dtype) {
    constexpr std::int64_t kStep = 8;  // elements: 16 bytes of bfloat16
    Shape whole = shape, first = shape;
    for (int i = 0; i < shape.rank(); ++i) {
      first[i] = i + 1 < shape.rank() ? 1 : kStep;
      whole[i] = i + 1 < shape.rank() ? shape[i] + 2 : (shape[i] + kStep - 1) / kStep * kStep + 2 * kStep;
    }
    whole_ = Array(whole, dtype, Layout::contiguous, Device::cuda);
    view_ = whole_;
    for (int i = 0; i < shape.rank(); ++i) view_ = view_.slice(i, first[i], first[i] + shape[i]);
  }
  operator View() const { return view_; }       // NOLINT: it is its view
  operator ConstView() const { return view_; }  // NOLINT
  const View* operator->() const { return &view_; }

  const Aligned& fill_normal(unsigned seed, double scale = 1) const {
    std::mt19937 generator(seed);
    std::normal_distribution<double> distribution(0, scale);
    for_each_index(view_.shape(), [&](auto& at) { set(view_, at, distribution(generator)); });
    return *this;
  }
  const Aligned& assign(const ConstView& other) const {
    for_each_index(view_.shape(), [&](auto& at) { set(view_, at, get(other, at)); });
    return *this;
  }
  /// The same numbers in float64, for the CPU.
  Array exact() const {
    Array copy(view_.shape(), DType::f64);
    copy.assign(view_);
    return copy;
  }
  bool same_bits(const Aligned& other) const { return whole_.bytes() == other.whole_.bytes(); }

  /// Whether it holds these numbers and poison around them.
  ::testing::AssertionResult holds(const ConstView& expected) const {
    Array copy(view_.shape(), view_.dtype());
    copy.assign(view_);
    const auto result = near(copy, [&](auto& at) { return get(expected, at); });
    fill_with(view_, std::numeric_limits<double>::quiet_NaN());
    bool poison = true;
    for_each_index(whole_->shape(), [&](auto& at) { poison &= std::isnan(get(whole_, at)); });
    assign(copy);
    if (result && !poison) return ::testing::AssertionFailure() << "wrote outside the view";
    return result;
  }

 private:
  Array whole_;
  View view_;
};

}  // namespace transmamba::testing
