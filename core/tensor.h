// Owning tensors, and what a rank runs with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/allocator.h"
#include "kernels/types.h"

namespace transmamba {

/// A contiguous block seen through a strided view. Copies share the block.
class Tensor {
 public:
  Tensor() = default;
  Tensor(Allocator& allocator, const Shape& shape, DType dtype);  ///< contents undefined
  explicit Tensor(const View& view) : view_(view) {}  ///< somebody else's memory, who must keep it

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

class Profile;

/// What a layer needs to run on this rank: where, in which type, with whose memory.
struct Context {
  Stream stream;
  DType dtype = DType::f32;
  Allocator* memory = nullptr;  ///< of the device
  Allocator* host = nullptr;    ///< of what the host reads and writes itself; null: the device is the host
  Profile* profile = nullptr;   ///< that regions go to (core/profile.h); must outlive what runs in them

  /// Of what must not be rounded as activations are (kernels/types.h).
  DType statistics() const { return statistics_of(dtype); }
  Tensor empty(const Shape& shape) const { return Tensor(*memory, shape, dtype); }
  Tensor empty(const Shape& shape, DType type) const { return Tensor(*memory, shape, type); }
  Tensor empty_host(const Shape& shape, DType type) const {
    return Tensor(host ? *host : *memory, shape, type);
  }
};

// Host tensors below are made by Context::empty_host. On the CPU nothing is copied that need not be.

/// Waits for all work that was enqueued.
void synchronize(const Context& context);
/// The same numbers on the device, in the order of the stream; `host` may be dropped at once. On the CPU
/// `host` itself.
Tensor to_device(const Context& context, const Tensor& host);
/// The same numbers in host memory, contiguous where x is. Waits for the device. On the CPU x itself: of a
/// view, its memory without a share in it.
Tensor to_host(const Context& context, const Tensor& x);
Tensor to_host(const Context& context, const View& x);
/// to = host, rounded where its type is narrower, in the order of the stream. Both contiguous.
void from_host(const Context& context, const Tensor& host, const View& to);

}  // namespace transmamba
