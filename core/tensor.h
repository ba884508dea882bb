// Owning tensors and the memory they come from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels/types.h"

namespace transmamba {

/// Hands out 64-byte aligned blocks and keeps returned ones for the next request of the same size, so that
/// after the first step training neither maps nor zeroes pages. Thread-safe; blocks may outlive it.
class Allocator {
 public:
  Allocator();
  /// Contents are undefined. `bytes` may be 0; the address is never null.
  std::shared_ptr<std::byte> allocate(std::int64_t bytes);
  std::int64_t bytes_in_use() const;
  std::int64_t peak_bytes() const;  ///< most bytes ever in use at once
  void reset_peak();
  /// From now on memory that is returned to any Allocator of this process stays as it is, neither unmapped
  /// nor handed out again: someone outside may still read and write it. There is no way back.
  static void keep_all();

 private:
  struct Pool;
  std::shared_ptr<Pool> pool_;
};

/// A contiguous block seen through a strided view. Copies share the block.
class Tensor {
 public:
  Tensor() = default;
  Tensor(Allocator& allocator, const Shape& shape, DType dtype);  ///< contents undefined

  explicit operator bool() const { return static_cast<bool>(view_); }
  operator View() const { return view_; }       // NOLINT: a tensor is a view
  operator ConstView() const { return view_; }  // NOLINT
  const View& view() const { return view_; }
  const Shape& shape() const { return view_.shape(); }
  DType dtype() const { return view_.dtype(); }
  std::int64_t dim(int i) const { return view_.dim(i); }
  std::int64_t numel() const { return view_.numel(); }

  Tensor slice(int dim, std::int64_t begin, std::int64_t end) const {
    return with(view_.slice(dim, begin, end));
  }
  Tensor split(int dim, std::int64_t inner) const { return with(view_.split(dim, inner)); }
  Tensor merge(int dim) const { return with(view_.merge(dim)); }
  template <class T, class... I>
  T* ptr(I... index) const {
    return view_.ptr<T>(index...);
  }

 private:
  Tensor with(View view) const {
    Tensor out = *this;
    out.view_ = view;
    return out;
  }
  std::shared_ptr<std::byte> block_;
  View view_;
};

/// What a layer needs to run on this rank: where, in which type, with whose memory.
struct Context {
  Stream stream;
  DType dtype = DType::f32;
  Allocator* memory = nullptr;

  /// Of what must not be rounded as activations are (kernels/types.h).
  DType statistics() const { return statistics_of(dtype); }
  Tensor empty(const Shape& shape) const { return Tensor(*memory, shape, dtype); }
  Tensor empty(const Shape& shape, DType type) const { return Tensor(*memory, shape, type); }
};

}  // namespace transmamba
