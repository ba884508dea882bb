#include "kernels/embedding.h"

#include "kernels/cuda/device.cuh"

namespace transmamba::cuda {
namespace {

using Tokens = Strided<const std::int32_t>;

/// The rows of the vocabulary that are here.
struct Shard {
  std::int64_t begin, rows, size;  // of the whole vocabulary
};
template <class Arguments>
Shard shard_of(const Arguments& a, const ConstView& table, std::string_view op) {
  check(a.vocab_size > 0 || a.tokens.numel() == 0, op, "the vocabulary is empty");
  return {a.vocab_begin, table.dim(0), a.vocab_size};
}

/// The row of the table that a token may touch, if it is `here`; NaN goes where `valid` is false.
struct Row {
  std::int64_t index;
  bool here, valid;
  __device__ Row(std::int32_t token, const Shard& shard) {
    const std::int64_t nearest = min(max(static_cast<std::int64_t>(token), std::int64_t{0}), shard.size - 1);
    valid = nearest == token;
    index = nearest - shard.begin;
    here = 0 <= index && index < shard.rows;
  }
};

/// A block a token.
template <class T>
__global__ void gather(Tokens tokens, Strided<const T> weight, Strided<T> y, std::int64_t t, Shard shard,
                       std::int64_t d) {
  const std::int64_t i = blockIdx.x / t, j = blockIdx.x % t;
  const Row row(*tokens(i, j), shard);
  for (std::int64_t k = threadIdx.x; k < d; k += blockDim.x)
    y(i, j)[k] = !row.valid ? not_a_number<T>() : row.here ? weight(row.index)[k] : T(0);
}

/// A block a token. That of the first occurrence of a row adds all of its occurrences, in order.
template <class T>
__global__ void scatter_add(Strided<const T> dy, Tokens tokens, Strided<T> dweight, std::int64_t t,
                            std::int64_t count, Shard shard, std::int64_t d) {
  __shared__ char hit[kThreads];
  const auto row_of = [&](std::int64_t at) { return Row(*tokens(at / t, at % t), shard); };
  const std::int64_t first = blockIdx.x, row = row_of(first).index;
  if (!row_of(first).here) return;
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
    launch("embedding", stream, {a.tokens.numel()}, gather<T>, strided<const std::int32_t>(a.tokens),
           strided<const T>(a.weight), strided<T>(a.y), a.tokens.dim(1), shard_of(a, a.weight, "embedding"),
           a.weight.dim(1));
  });
}

void embedding_backward(const EmbeddingBackward& a, const Stream& stream) {
  constexpr auto op = "embedding_backward";
  dispatch_float(a.dweight.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    launch(op, stream, {a.tokens.numel()}, scatter_add<T>, strided<const T>(a.dy),
           strided<const std::int32_t>(a.tokens), strided<T>(a.dweight), a.tokens.dim(1), a.tokens.numel(),
           shard_of(a, a.dweight, op), a.dweight.dim(1));
  });
}

}  // namespace transmamba::cuda
