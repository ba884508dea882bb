// A thread owns an element of a head's state through all segments.
#include <algorithm>

#include "kernels/cuda/device.cuh"
#include "kernels/ssd.h"

namespace transmamba::cuda {
namespace {

struct Places {
  explicit Places(std::span<const SegmentPlace> segments) : count(static_cast<int>(segments.size())) {
    std::copy(segments.begin(), segments.end(), at);
  }
  int count;
  SegmentPlace at[kMaxSegments];
};

/// A thread's element (b, h, i, j).
struct Element {
  std::int64_t b, h, i, j;
  bool exists;
  __device__ Element(std::int64_t heads, std::int64_t n, std::int64_t p)
      : b(blockIdx.x / heads), h(blockIdx.x % heads) {
    const std::int64_t item = static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
    i = item / p, j = item % p, exists = i < n;
  }
};
template <class AnyView>
Grid element_each(const AnyView& states) {
  const std::int64_t elements = states.dim(3) * states.dim(4);
  return {states.dim(1) * states.dim(2), kThreads, 0, (elements + kThreads - 1) / kThreads};
}

template <class T>
__global__ void combine(Strided<const T> log_decay, Strided<const T> local, Strided<T> states,
                        const __grid_constant__ Places segments, std::int64_t heads, std::int64_t n,
                        std::int64_t p) {
  const Element my(heads, n, p);
  if (!my.exists) return;
  T state = 0;
  for (int k = 0; k < segments.count; ++k) {
    const auto [in, out] = segments.at[k];
    if (out >= 0) states(out, my.b, my.h, my.i)[my.j] = state;
    state = exp(*log_decay(in, my.b, my.h)) * state + local(in, my.b, my.h, my.i)[my.j];
  }
}

template <class T>
__global__ void combine_backward(Strided<const T> log_decay, Strided<const T> dstates, Strided<T> dlocal,
                                 const __grid_constant__ Places segments, std::int64_t heads, std::int64_t n,
                                 std::int64_t p) {
  const Element my(heads, n, p);
  if (!my.exists) return;
  T after = 0;
  for (int k = segments.count - 1; k >= 0; --k) {
    const auto [in, out] = segments.at[k];
    const T passed = k + 1 < segments.count ? exp(*log_decay(in, my.b, my.h)) * after : T(0);
    if (out >= 0) dlocal(out, my.b, my.h, my.i)[my.j] = after;
    after = dstates(in, my.b, my.h, my.i)[my.j] + passed;
  }
}

}  // namespace

void ssd_combine(const SsdCombine& a, const Stream& stream) {
  dispatch_float(a.local.dtype(), "ssd_combine", [&](auto zero) {
    using T = decltype(zero);
    launch("ssd_combine", stream, element_each(a.local), combine<T>, strided<const T>(a.log_decay),
           strided<const T>(a.local), strided<T>(a.states), Places(a.segments), a.local.dim(2),
           a.local.dim(3), a.local.dim(4));
  });
}

void ssd_combine_backward(const SsdCombineBackward& a, const Stream& stream) {
  constexpr auto op = "ssd_combine_backward";
  dispatch_float(a.dstates.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    launch(op, stream, element_each(a.dstates), combine_backward<T>, strided<const T>(a.log_decay),
           strided<const T>(a.dstates), strided<T>(a.dlocal), Places(a.segments), a.dstates.dim(2),
           a.dstates.dim(3), a.dstates.dim(4));
  });
}

}  // namespace transmamba::cuda
