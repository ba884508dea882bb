#include "kernels/embedding.h"

#include <bit>
#include <limits>

#include "kernels/cuda/sort_pairs.cuh"
#include "kernels/cuda/vectors.cuh"

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
template <int N, class T>
__global__ void gather(Tokens tokens, Strided<const T> weight, Strided<T> y, std::int64_t t, Shard shard,
                       std::int64_t d) {
  const std::int64_t i = blockIdx.x / t, j = blockIdx.x % t;
  const Row row(*tokens(i, j), shard);
  for (std::int64_t k = threadIdx.x * N; k < d; k += blockDim.x * N) {
    Compute<T> out[N];
    if (row.valid && row.here) {
      const auto in = load_pack<N>(weight(row.index) + k);
#pragma unroll
      for (int e = 0; e < N; ++e) out[e] = in[e];
    } else {
#pragma unroll
      for (int e = 0; e < N; ++e) out[e] = row.valid ? Compute<T>(0) : not_a_number<Compute<T>>();
    }
    store_pack(y(i, j) + k, out);
  }
}

/// A token's number is its place in (b, t). What is sorted: rows of the table, and after them `rows` for
/// tokens of other shards; with them the number, or its complement for a token outside the vocabulary.
__global__ void number_tokens(Tokens tokens, std::int64_t t, std::int64_t count, Shard shard,
                              std::uint32_t* rows, std::int32_t* numbers) {
  const std::int64_t at = global_index();
  if (at >= count) return;
  const Row row(*tokens(at / t, at % t), shard);
  const std::int32_t number = static_cast<std::int32_t>(at);
  rows[at] = static_cast<std::uint32_t>(row.here ? row.index : shard.rows);
  numbers[at] = row.valid ? number : ~number;
}

/// A warp a place in sorted order and kWarp * N columns. That of a row's first token adds all of its tokens,
/// in order, with several loads on their way: a frequent word's are thousands.
template <int N, class T, class S>
__global__ void __launch_bounds__(kThreads, 4)
    scatter_add(Strided<const T> dy, const std::uint32_t* rows, const std::int32_t* numbers,
                Strided<S> dweight, std::int64_t t, std::int64_t count, std::int64_t here, std::int64_t d,
                std::int64_t warps) {
  constexpr int kAhead = 16;
  const std::int64_t warp = global_index() / kWarp, first = warp / warps, lane = threadIdx.x % kWarp;
  if (first >= count) return;
  const std::uint32_t none = static_cast<std::uint32_t>(here);
  const std::int64_t k = (warp % warps * kWarp + lane) * N;
  const bool has_columns = k < d;  // the others of a warp's lanes still tell it of tokens
  // A lane a token.
  const auto row_at = [&](std::int64_t at) { return at < count ? rows[at] : none; };
  const auto number_at = [&](std::int64_t at) { return at < count ? numbers[at] : 0; };
  std::uint32_t row_here = row_at(first + lane);
  std::int32_t number = number_at(first + lane);
  const std::uint32_t before = first > 0 ? rows[first - 1] : none;
  const std::uint32_t row = __shfl_sync(0xffffffffu, row_here, 0);
  if (row == none || row == before) return;
  S sum[N] = {};
  if (has_columns) {
    const auto old = load_pack<N>(dweight(row) + k);
#pragma unroll
    for (int e = 0; e < N; ++e) sum[e] = old[e];
  }
  for (std::int64_t begin = first;; begin += kWarp) {
    if (begin > first) row_here = row_at(begin + lane), number = number_at(begin + lane);
    const int length = __popc(__ballot_sync(0xffffffffu, row_here == row));
    const std::uint32_t invalid = __ballot_sync(0xffffffffu, number < 0);
    const std::uint32_t at = static_cast<std::uint32_t>(number < 0 ? ~number : number);
    const std::uint32_t i = at / static_cast<std::uint32_t>(t), j = at - i * static_cast<std::uint32_t>(t);
    const std::int64_t offset = dy(i, j) - dy.data;
    for (int start = 0; start < length; start += kAhead) {
      Pack<T, N> packs[kAhead];
#pragma unroll
      for (int n = 0; n < kAhead; ++n) {
        const T* const from = dy.data + __shfl_sync(0xffffffffu, offset, start + n) + k;
        if (start + n < length && has_columns) packs[n] = load_pack<N>(from);
      }
#pragma unroll
      for (int n = 0; n < kAhead; ++n) {
        if (start + n >= length) break;
        const bool valid = !(invalid >> (start + n) & 1);
#pragma unroll
        for (int e = 0; e < N; ++e) sum[e] += valid ? packs[n][e] : not_a_number<S>();
      }
    }
    if (length < kWarp) break;
  }
  if (has_columns) store_pack(dweight(row) + k, sum);
}

}  // namespace

void embedding(const Embedding& a, const Stream& stream) {
  dispatch_storage(a.weight.dtype(), "embedding", [&](auto zero) {
    using T = decltype(zero);
    constexpr int kMost = 16 / sizeof(T);
    const auto run = [&](auto n) {
      const std::int64_t d = a.weight.dim(1), threads = (d / n + kWarp - 1) / kWarp * kWarp;
      launch("embedding", stream,
             {a.tokens.numel(), static_cast<int>(std::clamp<std::int64_t>(threads, kWarp, kThreads))},
             gather<n, T>, strided<const std::int32_t>(a.tokens), strided<const T>(a.weight), strided<T>(a.y),
             a.tokens.dim(1), shard_of(a, a.weight, "embedding"), d);
    };
    if (in_packs(a.weight, kMost) && in_packs(a.y, kMost))
      run(std::integral_constant<int, kMost>{});
    else
      run(std::integral_constant<int, 1>{});
  });
}

void embedding_backward(const EmbeddingBackward& a, const Stream& stream) {
  constexpr auto op = "embedding_backward";
  const std::int64_t t = a.tokens.dim(1), count = a.tokens.numel(), d = a.dweight.dim(1);
  const Shard shard = shard_of(a, a.dweight, op);
  if (count == 0 || d == 0 || shard.rows == 0) return;
  check(count <= std::numeric_limits<std::int32_t>::max(), op, "tokens: {} are more than can be sorted",
        count);
  const int items = static_cast<int>(count), bits = std::bit_width(static_cast<std::uint64_t>(shard.rows));
  std::size_t scratch = 0;
  const auto sort = [&](void* memory, std::uint32_t* rows, std::int32_t* numbers) {
    sort_pairs({memory, scratch, rows, rows + count, numbers, numbers + count, items, bits}, op, stream);
  };
  sort(nullptr, nullptr, nullptr);
  const Workspace<std::uint32_t> lists(4 * count + static_cast<std::int64_t>(scratch / 4) + 64, stream, op);
  std::uint32_t* const rows = lists.data() + scratch / 4 + 64;
  std::int32_t* const numbers = reinterpret_cast<std::int32_t*>(rows + 2 * count);
  launch(op, stream, thread_each(count), number_tokens, strided<const std::int32_t>(a.tokens), t, count,
         shard, rows, numbers);
  sort(lists.data(), rows, numbers);
  dispatch_storage(a.dy.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    using S = Compute<T>;
    constexpr int kMost = 16 / sizeof(S);
    const auto run = [&](auto n) {
      constexpr std::int64_t kColumns = kWarp * n;
      const std::int64_t warps = (d + kColumns - 1) / kColumns;
      launch(op, stream, thread_each(count * warps * kWarp), scatter_add<n, T, S>, strided<const T>(a.dy),
             static_cast<const std::uint32_t*>(rows + count),
             static_cast<const std::int32_t*>(numbers + count), strided<S>(a.dweight), t, count, shard.rows,
             d, warps);
    };
    if (in_packs(a.dy, kMost) && in_packs(a.dweight, kMost))
      run(std::integral_constant<int, kMost>{});
    else
      run(std::integral_constant<int, 1>{});
  });
}

}  // namespace transmamba::cuda
