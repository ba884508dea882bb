#include "kernels/embedding.h"

#include "kernels/cuda/device.cuh"

namespace transmamba::cuda {
namespace {

using Tokens = Strided<const std::int32_t>;

/// The row of the table that a token may touch; NaN goes where `valid` is false.
struct Row {
  std::int64_t index;
  bool valid;
  __device__ Row(std::int32_t token, std::int64_t vocab)
      : index(min(max(static_cast<std::int64_t>(token), std::int64_t{0}), vocab - 1)),
        valid(index == token) {}
};

/// A block a token.
template <class T>
__global__ void gather(Tokens tokens, Strided<const T> weight, Strided<T> y, std::int64_t t,
                       std::int64_t vocab, std::int64_t d) {
  const std::int64_t i = blockIdx.x / t, j = blockIdx.x % t;
  const Row row(*tokens(i, j), vocab);
  for (std::int64_t k = threadIdx.x; k < d; k += blockDim.x)
    y(i, j)[k] = row.valid ? weight(row.index)[k] : not_a_number<T>();
}

/// A block a token. That of the first occurrence of a row adds all of its occurrences, in order.
template <class T>
__global__ void scatter_add(Strided<const T> dy, Tokens tokens, Strided<T> dweight, std::int64_t t,
                            std::int64_t count, std::int64_t vocab, std::int64_t d) {
  __shared__ char hit[kThreads];
  const auto row_of = [&](std::int64_t at) { return Row(*tokens(at / t, at % t), vocab); };
  const std::int64_t first = blockIdx.x, row = row_of(first).index;
  for (std::int64_t begin = 0; begin < first; begin += blockDim.x) {
    const std::int64_t at = begin + threadIdx.x;
    if (__syncthreads_or(at < first && row_of(at).index == row)) return;
  }
  for (std::int64_t begin = first; begin < count; begin += blockDim.x) {
    const std::int64_t at = begin + threadIdx.x;
    hit[threadIdx.x] = at < count && row_of(at).index == row;
    if (__syncthreads_or(hit[threadIdx.x]))
      for (unsigned n = 0; n < blockDim.x; ++n) {
        if (!hit[n]) continue;
        const std::int64_t i = (begin + n) / t, j = (begin + n) % t;
        const bool valid = row_of(begin + n).valid;
        for (std::int64_t k = threadIdx.x; k < d; k += blockDim.x)
          dweight(row)[k] += valid ? dy(i, j)[k] : not_a_number<T>();
      }
    __syncthreads();  // before the next hits
  }
}

}  // namespace

void embedding(const Embedding& a, const Stream& stream) {
  dispatch_float(a.weight.dtype(), "embedding", [&](auto zero) {
    using T = decltype(zero);
    check(a.weight.dim(0) > 0 || a.tokens.numel() == 0, "embedding", "weight: no rows, got {}",
          a.weight.shape());
    launch("embedding", stream, {a.tokens.numel()}, gather<T>, strided<const std::int32_t>(a.tokens),
           strided<const T>(a.weight), strided<T>(a.y), a.tokens.dim(1), a.weight.dim(0), a.weight.dim(1));
  });
}

void embedding_backward(const EmbeddingBackward& a, const Stream& stream) {
  constexpr auto op = "embedding_backward";
  dispatch_float(a.dweight.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    check(a.dweight.dim(0) > 0 || a.tokens.numel() == 0, op, "dweight: no rows, got {}", a.dweight.shape());
    launch(op, stream, {a.tokens.numel()}, scatter_add<T>, strided<const T>(a.dy),
           strided<const std::int32_t>(a.tokens), strided<T>(a.dweight), a.tokens.dim(1), a.tokens.numel(),
           a.dweight.dim(0), a.dweight.dim(1));
  });
}

}  // namespace transmamba::cuda
