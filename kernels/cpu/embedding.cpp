#include "kernels/embedding.h"

#include <algorithm>

#include "kernels/cpu/tokens.h"

namespace transmamba::cpu {
namespace {

template <class T>
void forward(const Embedding& a, const Stream& stream) {
  const std::int64_t d = a.weight.dim(1);
  for_each_token(a.tokens.dim(0), a.tokens.dim(1), d, stream, [&](std::int64_t i, std::int64_t j) {
    const std::int64_t row = *a.tokens.ptr<std::int32_t>(i, j) - a.vocab_begin;
    T* const y = a.y.ptr<T>(i, j);
    if (0 <= row && row < a.weight.dim(0))
      std::copy_n(a.weight.ptr<T>(row), d, y);
    else
      std::fill_n(y, d, T(0));
  });
}

/// Threads own columns: a token may occur anywhere, but each sum keeps the order of (b, t).
template <class T>
void backward(const EmbeddingBackward& a, const Stream& stream) {
  constexpr std::int64_t kColumns = 64;
  parallel_blocks(a.dweight.dim(1), kColumns, stream, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = 0; i < a.tokens.dim(0); ++i)
      for (std::int64_t j = 0; j < a.tokens.dim(1); ++j) {
        const std::int64_t row = *a.tokens.ptr<std::int32_t>(i, j) - a.vocab_begin;
        if (row < 0 || row >= a.dweight.dim(0)) continue;
        const T* const dy = a.dy.ptr<T>(i, j);
        T* const dweight = a.dweight.ptr<T>(row);
#pragma omp simd
        for (std::int64_t k = begin; k < end; ++k) dweight[k] += dy[k];
      }
  });
}

}  // namespace

void embedding(const Embedding& arguments, const Stream& stream) {
  check_tokens(arguments.tokens, arguments.vocab_size, "embedding", "tokens");
  with_float(arguments.weight.dtype(), "embedding",
             [&](auto zero) { forward<decltype(zero)>(arguments, stream); });
}

void embedding_backward(const EmbeddingBackward& arguments, const Stream& stream) {
  check_tokens(arguments.tokens, arguments.vocab_size, "embedding_backward", "tokens");
  with_float(arguments.dweight.dtype(), "embedding_backward",
             [&](auto zero) { backward<decltype(zero)>(arguments, stream); });
}

}  // namespace transmamba::cpu
