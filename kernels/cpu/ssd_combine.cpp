// Segments are few and states are read once: a head goes from segment to segment, a row of its state at a
// time.
#include <algorithm>

#include "kernels/cpu/tokens.h"
#include "kernels/cpu/vector_math.h"
#include "kernels/ssd.h"

namespace transmamba::cpu {
namespace {

/// next = decay state + local
template <class T>
void advance(T decay, const T* state, const T* local, T* next, std::int64_t p) {
#pragma omp simd
  for (std::int64_t j = 0; j < p; ++j) next[j] = decay * state[j] + local[j];
}

template <class T>
void combine_head(const SsdCombine& a, std::int64_t b, std::int64_t h) {
  const std::int64_t s = a.states.dim(0), n = a.states.dim(3), p = a.states.dim(4);
  for (std::int64_t i = 0; i < n; ++i) std::fill_n(a.states.ptr<T>(0, b, h, i), p, T(0));
  for (std::int64_t k = 0; k + 1 < s; ++k) {
    const T decay = exp_or_zero(*a.log_decay.ptr<T>(k, b, h));
    for (std::int64_t i = 0; i < n; ++i)
      advance(decay, a.states.ptr<T>(k, b, h, i), a.local.ptr<T>(k, b, h, i), a.states.ptr<T>(k + 1, b, h, i),
              p);
  }
}

/// dlocal = adj, then adj = dstate + decay adj. dlocal may alias dstate.
template <class T>
void retreat(T decay, const T* dstate, T* adj, T* dlocal, std::int64_t p) {
#pragma omp simd
  for (std::int64_t j = 0; j < p; ++j) {
    const T after = adj[j];
    adj[j] = dstate[j] + decay * after;
    dlocal[j] = after;
  }
}

template <class T>
void combine_backward_head(const SsdCombineBackward& a, std::int64_t b, std::int64_t h) {
  const std::int64_t s = a.dlocal.dim(0), n = a.dlocal.dim(3), p = a.dlocal.dim(4);
  Scratch<T> adj(static_cast<std::size_t>(n * p));
  for (std::int64_t k = s - 1; k >= 0; --k) {
    const T decay = exp_or_zero(*a.log_decay.ptr<T>(k, b, h));
    for (std::int64_t i = 0; i < n; ++i)
      retreat(decay, a.dstates.ptr<T>(k, b, h, i), adj.data() + i * p, a.dlocal.ptr<T>(k, b, h, i), p);
  }
}

}  // namespace

void ssd_combine(const SsdCombine& a, const Stream& stream) {
  const std::int64_t heads = a.states.dim(2);
  with_float(a.states.dtype(), "ssd_combine", [&](auto type) {
    parallel_for(a.states.dim(1) * heads, stream,
                 [&](std::int64_t i) { combine_head<decltype(type)>(a, i / heads, i % heads); });
  });
}

void ssd_combine_backward(const SsdCombineBackward& a, const Stream& stream) {
  const std::int64_t heads = a.dlocal.dim(2);
  with_float(a.dlocal.dtype(), "ssd_combine_backward", [&](auto type) {
    parallel_for(a.dlocal.dim(1) * heads, stream,
                 [&](std::int64_t i) { combine_backward_head<decltype(type)>(a, i / heads, i % heads); });
  });
}

}  // namespace transmamba::cpu
