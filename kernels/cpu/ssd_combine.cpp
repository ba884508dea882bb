// Segments are few and states are read once: a head goes from segment to segment, a row of its state at a
// time.
#include <algorithm>

#include "kernels/cpu/tokens.h"
#include "kernels/cpu/vector_math.h"
#include "kernels/ssd.h"

namespace transmamba::cpu {
namespace {

/// state = decay state + x
template <class T>
void advance(T decay, T* state, const T* x, std::int64_t p) {
#pragma omp simd
  for (std::int64_t j = 0; j < p; ++j) state[j] = decay * state[j] + x[j];
}

/// states[out] = state, if it is wanted.
template <class T>
void put(const Scratch<T>& state, const View& states, std::int64_t out, std::int64_t b, std::int64_t h) {
  const std::int64_t n = states.dim(3), p = states.dim(4);
  for (std::int64_t i = 0; out >= 0 && i < n; ++i)
    std::copy_n(state.data() + i * p, p, states.ptr<T>(out, b, h, i));
}

template <class T>
void combine_head(const SsdCombine& a, std::int64_t b, std::int64_t h) {
  const std::int64_t n = a.local.dim(3), p = a.local.dim(4);
  Scratch<T> state(static_cast<std::size_t>(n * p));
  for (const auto& [in, out] : a.segments) {
    put(state, a.states, out, b, h);
    const T decay = exp_or_zero(*a.log_decay.ptr<T>(in, b, h));
    for (std::int64_t i = 0; i < n; ++i) advance(decay, state.data() + i * p, a.local.ptr<T>(in, b, h, i), p);
  }
}

template <class T>
void combine_backward_head(const SsdCombineBackward& a, std::int64_t b, std::int64_t h) {
  const std::int64_t n = a.dstates.dim(3), p = a.dstates.dim(4);
  Scratch<T> after(static_cast<std::size_t>(n * p));
  for (std::size_t k = a.segments.size(); k-- > 0;) {
    const auto [in, out] = a.segments[k];
    put(after, a.dlocal, out, b, h);
    const T decay = k + 1 < a.segments.size() ? exp_or_zero(*a.log_decay.ptr<T>(in, b, h)) : T(0);
    for (std::int64_t i = 0; i < n; ++i)
      advance(decay, after.data() + i * p, a.dstates.ptr<T>(in, b, h, i), p);
  }
}

}  // namespace

void ssd_combine(const SsdCombine& a, const Stream& stream) {
  const std::int64_t heads = a.local.dim(2);
  with_float(a.local.dtype(), "ssd_combine", [&](auto type) {
    parallel_for(a.local.dim(1) * heads, stream,
                 [&](std::int64_t i) { combine_head<decltype(type)>(a, i / heads, i % heads); });
  });
}

void ssd_combine_backward(const SsdCombineBackward& a, const Stream& stream) {
  const std::int64_t heads = a.dstates.dim(2);
  with_float(a.dstates.dtype(), "ssd_combine_backward", [&](auto type) {
    parallel_for(a.dstates.dim(1) * heads, stream,
                 [&](std::int64_t i) { combine_backward_head<decltype(type)>(a, i / heads, i % heads); });
  });
}

}  // namespace transmamba::cpu
