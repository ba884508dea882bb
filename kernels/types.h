// Types every kernel contract is written in: element types, devices, streams and strided views.
//
// Letters used for shapes everywhere: b batch, t time, h heads, n query/key width (the SSM's state size),
// p value width (the SSM's head dim), d hidden, f MLP width, w convolution width, V vocabulary, c channels.
// Types are float32, float64 or bfloat16 for T and statistics_of(T) for S. The CPU backend computes in
// float32 and float64. For bfloat16 the CUDA backend accumulates in float32, needs compute capability 9.0,
// and needs rows (all dims but the last) that begin at multiples of 16 bytes; float32 and float64 have plain
// kernels there too, to check the rest against.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "kernels/check.h"

namespace transmamba {

enum class DType : std::uint8_t { f32, f64, bf16, i32 };
enum class Device : std::uint8_t { cpu, cuda };

/// The 16 upper bits of a float32. A storage type: only the CUDA backend computes with it.
struct bfloat16 {
  std::uint16_t bits = 0;
};

inline float to_float(bfloat16 x) { return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16); }
/// To the nearest, halfway cases to even; NaN stays NaN.
inline bfloat16 to_bfloat16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if (x != x) return {static_cast<std::uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

const char* to_string(DType dtype);
const char* to_string(Device device);
std::int64_t size_of(DType dtype);  ///< bytes of one element

/// The type of what goes with numbers of type `dtype` but must not be rounded as they are: gradients of
/// parameters, small parameters (norms, convolutions, biases, A_log, D), step sizes, decays, SSM states,
/// losses and statistics of softmax. Contracts call it S, and the type of activations and matrices T.
constexpr DType statistics_of(DType dtype) { return dtype == DType::bf16 ? DType::f32 : dtype; }

template <class T>
constexpr DType dtype_of() {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double> || std::is_same_v<T, bfloat16> ||
                std::is_same_v<T, std::int32_t>);
  if constexpr (std::is_same_v<T, float>) return DType::f32;
  if constexpr (std::is_same_v<T, bfloat16>) return DType::bf16;
  if constexpr (std::is_same_v<T, double>) return DType::f64;
  return DType::i32;
}

/// Memory for what a kernel needs while it runs, in the order of one stream: what was given back is handed
/// out again at once, to work that is enqueued later. So a function takes it, enqueues all that uses it on
/// that stream, and gives it back before it returns.
class Scratch {
 public:
  virtual ~Scratch() = default;
  /// Contents are undefined; aligned to 256 bytes; `bytes` > 0. Throws Error where there is no more.
  virtual std::byte* take(std::int64_t bytes) = 0;
  virtual void give_back(std::byte* block) noexcept = 0;
};

/// Looks after a GPU's work while the host waits for it.
class Watch {
 public:
  virtual ~Watch() = default;
  /// Called again and again in a wait that has taken `seconds` so far; throws Error where its end cannot
  /// come.
  virtual void look(double seconds) = 0;
};

/// Where and in which order kernels run. CPU kernels return when done and use up to `threads` cores;
/// their results do not depend on `threads`. CUDA kernels are enqueued on `handle` (a cudaStream_t).
struct Stream {
  Device device = Device::cpu;
  int threads = 1;
  void* handle = nullptr;
  /// Off: kernels may add in any order where that is faster, so that two runs differ by rounding (attention's
  /// backward pass in bfloat16).
  bool deterministic = true;
  /// Of CUDA kernels' workspaces (kernels/workspace.h says how large they are); must outlive the stream's
  /// work. Null: each is taken from the driver, in the order of the stream.
  Scratch* scratch = nullptr;
  /// Asked while the host waits for the stream; must outlive such waits. Null: the host just waits.
  Watch* watch = nullptr;
};

/// At most kMaxDims extents; outermost first.
class Shape {
 public:
  static constexpr int kMaxDims = 5;
  Shape() = default;
  Shape(std::initializer_list<std::int64_t> extents);
  int rank() const { return rank_; }
  std::int64_t operator[](int dim) const { return extent_[static_cast<std::size_t>(dim)]; }
  std::int64_t& operator[](int dim) { return extent_[static_cast<std::size_t>(dim)]; }
  std::int64_t numel() const;
  void append(std::int64_t extent);
  bool operator==(const Shape& other) const;

 private:
  std::array<std::int64_t, kMaxDims> extent_{};
  int rank_ = 0;
};

std::string to_string(const Shape& shape);  ///< "(2, 24, 4, 8)"

/// So that a check can be handed these and formats them only when it fails; without the weight of
/// fmt/format.h.
template <class T>
struct PrintedByToString {
  constexpr auto parse(fmt::format_parse_context& context) { return context.begin(); }
  auto format(const T& value, fmt::format_context& context) const {
    const std::string text = to_string(value);
    return std::copy(text.begin(), text.end(), context.out());
  }
};

}  // namespace transmamba

template <>
struct fmt::formatter<transmamba::Shape> : transmamba::PrintedByToString<transmamba::Shape> {};
template <>
struct fmt::formatter<transmamba::DType> : transmamba::PrintedByToString<transmamba::DType> {};

namespace transmamba {

/// A strided window on memory that somebody else owns. Strides count elements, not bytes. Every kernel
/// asks for stride 1 in the last dim. A default-constructed view is "absent" and tests false. Every kernel
/// takes no tokens (an extent b or t of 0, whatever the address) and does nothing then.
/// `Byte` is `const std::byte` for inputs and `std::byte` for outputs.
template <class Byte>
class BasicView {
 public:
  BasicView() = default;
  /// Contiguous, row major.
  BasicView(Byte* data, DType dtype, const Shape& shape) : data_(data), dtype_(dtype), shape_(shape) {
    stride_ = shape;
    std::int64_t step = 1;
    for (int i = shape.rank() - 1; i >= 0; --i) stride_[i] = step, step *= shape[i];
  }
  /// An output may be read.
  template <class Other, class = std::enable_if_t<std::is_const_v<Byte> && !std::is_const_v<Other>>>
  BasicView(const BasicView<Other>& other)
      : data_(other.raw()), dtype_(other.dtype()), shape_(other.shape()), stride_(other.strides()) {}

  explicit operator bool() const { return data_ != nullptr; }
  Byte* raw() const { return data_; }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  const Shape& strides() const { return stride_; }
  int rank() const { return shape_.rank(); }
  std::int64_t dim(int i) const { return shape_[i]; }
  std::int64_t stride(int i) const { return stride_[i]; }
  std::int64_t numel() const { return shape_.numel(); }
  bool contiguous() const {
    if (numel() == 0) return true;
    std::int64_t step = 1;
    for (int i = rank() - 1; i >= 0; step *= shape_[i--])
      if (shape_[i] != 1 && stride_[i] != step) return false;
    return true;
  }

  template <class T>
  using Element = std::conditional_t<std::is_const_v<Byte>, const T, T>;

  /// Address of the element (or row) at leading indices `index...`. The type is checked.
  template <class T, class... I>
  Element<T>* ptr(I... index) const {
    check(dtype_of<T>() == dtype_, "view", "holds {}, read as {}", dtype_, dtype_of<T>());
    std::int64_t offset = 0;
    int i = 0;
    ((offset += static_cast<std::int64_t>(index) * stride_[i++]), ...);
    return reinterpret_cast<Element<T>*>(data_) + offset;
  }

  /// Indices [begin, end) of dim `d`.
  BasicView slice(int d, std::int64_t begin, std::int64_t end) const {
    check(d < rank() && 0 <= begin && begin <= end && end <= shape_[d], "view",
          "slice [{}, {}) of dim {} of {}", begin, end, d, shape_);
    BasicView out = *this;
    out.shape_[d] = end - begin;
    out.data_ += begin * stride_[d] * size_of(dtype_);
    return out;
  }
  /// Dim `d` cut in two: extent (outer * inner) becomes (outer, inner).
  BasicView split(int d, std::int64_t inner) const {
    check(d < rank() && inner > 0 && shape_[d] % inner == 0, "view", "dim {} of {} split by {}", d, shape_,
          inner);
    BasicView out;
    out.data_ = data_, out.dtype_ = dtype_;
    for (int i = 0; i < rank(); ++i) {
      out.shape_.append(i == d ? shape_[i] / inner : shape_[i]);
      out.stride_.append(i == d ? stride_[i] * inner : stride_[i]);
      if (i == d) out.shape_.append(inner), out.stride_.append(stride_[i]);
    }
    return out;
  }
  /// Dims `d` and `d + 1` joined; they must lie one after the other in memory, unless the view is empty.
  BasicView merge(int d) const {
    const bool follows = d + 1 < rank() && (shape_[d] <= 1 || shape_[d + 1] * stride_[d + 1] == stride_[d]);
    check(follows || (d + 1 < rank() && numel() == 0), "view",
          "dims {} and {} of {} with strides {} cannot be merged", d, d + 1, shape_, stride_);
    BasicView out;
    out.data_ = data_, out.dtype_ = dtype_;
    for (int i = 0; i < rank(); ++i) {
      if (i == d) continue;
      out.shape_.append(i == d + 1 ? shape_[d] * shape_[i] : shape_[i]);
      out.stride_.append(stride_[i]);
    }
    return out;
  }

 private:
  Byte* data_ = nullptr;
  DType dtype_ = DType::f32;
  Shape shape_, stride_;
};

using View = BasicView<std::byte>;
using ConstView = BasicView<const std::byte>;

}  // namespace transmamba
