#include "kernels/embedding.h"

#include <limits>

#include "kernels/cuda/vectors.cuh"

namespace transmamba::cuda {
namespace {

using Tokens = Strided<const std::int32_t>;

/// The rows of the vocabulary that are here.
struct Shard {
  std::int32_t begin, rows, size;  // of the whole vocabulary
};
template <class Arguments>
Shard shard_of(const Arguments& a, const ConstView& table, std::string_view op) {
  check(a.vocab_size > 0 || a.tokens.numel() == 0, op, "the vocabulary is empty");
  check(std::max({a.vocab_begin, table.dim(0), a.vocab_size}) <= std::numeric_limits<std::int32_t>::max(), op,
        "the vocabulary has more words than a token can name");
  return {static_cast<std::int32_t>(a.vocab_begin), static_cast<std::int32_t>(table.dim(0)),
          static_cast<std::int32_t>(a.vocab_size)};
}

/// The row of the table that a token may touch, if it is `here`; NaN goes where `valid` is false.
struct Row {
  std::int32_t index;
  bool here, valid;
  __device__ Row(std::int32_t token, const Shard& shard) {
    const std::int32_t nearest = min(max(token, 0), shard.size - 1);
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

// ---- The gradient: tokens are grouped by their rows, and each row's are added in their order. A frequent
// word's are cut into stretches, whose sums are added in order too.

constexpr int kStretch = 256;  // tokens
constexpr int kRange = 256;    // rows of the table that a block groups the tokens of
constexpr int kGroupers = 1024, kSlices = kGroupers / kWarp;  // threads, and warps, of such a block

/// A token where the grouping has put it: rows follow each other, and within one its tokens do.
struct alignas(16) Grouped {
  std::int32_t row;     // of the table, or -1 at places that are left over
  std::int32_t number;  // place in (b, t), or the complement of that for a token outside the vocabulary
  std::int32_t rank;    // among the row's tokens
  std::int32_t count;   // of them
};

/// Block k groups the tokens of rows [k * kRange, (k + 1) * kRange): every block reads all tokens, and so
/// knows where its own go. A warp has a slice of the tokens. The last block also marks what is left over.
__global__ void __launch_bounds__(kGroupers)
    group_tokens(Tokens tokens, int t, int count, Shard shard, Grouped* grouped, std::uint32_t* arrivals,
                 std::int64_t arrival_count) {
  __shared__ int places[kRange][kSlices];  // where a slice's tokens of a row go
  __shared__ int starts[kRange + 1];       // of rows
  __shared__ int sums[kSlices], befores[kSlices];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, slice = thread / kWarp;
  const int first_row = static_cast<int>(blockIdx.x) * kRange;
  for (std::int64_t at = global_index(); at < arrival_count; at += gridDim.x * kGroupers) arrivals[at] = 0;
  for (int at = thread; at < kRange * kSlices; at += kGroupers) places[at / kSlices][at % kSlices] = 0;
  __syncthreads();
  const std::int64_t length = (static_cast<std::int64_t>(count) + kGroupers - 1) / kGroupers * kWarp;
  const int begin = static_cast<int>(min(slice * length, static_cast<std::int64_t>(count)));
  const int end = static_cast<int>(min(begin + length, static_cast<std::int64_t>(count)));
  const int first_word = shard.begin + first_row, rows = min(kRange, shard.rows - first_row);
  // f(place in (b, t), token, whether there is one), a lane a token.
  const auto for_slice = [&](auto&& f) {
    int j = (begin + lane) % t;
    const std::int32_t* from = tokens((begin + lane) / t, j);
    const int more = kWarp % t;
    const std::int64_t step = kWarp / t * tokens.stride[0] + more * tokens.stride[1],
                       wrap = tokens.stride[0] - t * tokens.stride[1];
#pragma unroll 4
    for (int tile = begin; tile < end; tile += kWarp) {
      const bool there = tile + lane < end;
      f(tile + lane, there ? *from : 0, there);
      from += step, j += more;
      if (j >= t) j -= t, from += wrap;
    }
  };
  const auto nearest = [&](std::int32_t token) { return min(max(token, 0), shard.size - 1); };
  int before = 0;  // tokens of rows before the range
  for_slice([&](int, std::int32_t token, bool there) {
    const int word = nearest(token), index = word - first_word;
    before += there && shard.begin <= word && index < 0;
    if (there && 0 <= index && index < rows) atomicAdd(&places[index][slice], 1);
  });
  before = warp_reduce<Plus>(before);
  if (lane == 0) befores[slice] = before;
  __syncthreads();
  // Counts become places: an exclusive sum over (row, slice), of which a thread has kPer.
  constexpr int kPer = kRange * kSlices / kGroupers;
  int* const mine = &places[0][0] + thread * kPer;
  int own = 0;
#pragma unroll
  for (int k = 0; k < kPer; ++k) own += mine[k];
  int sum = own;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, sum, distance);
    if (lane >= distance) sum += other;
  }
  if (lane == kWarp - 1) sums[slice] = sum;
  __syncthreads();
  int place = warp_reduce<Plus>(befores[lane] + (lane < slice ? sums[lane] : 0)) + sum - own;
#pragma unroll
  for (int k = 0; k < kPer; ++k) {
    const int here = mine[k];
    mine[k] = place, place += here;
  }
  if (thread == kGroupers - 1) starts[kRange] = place;
  __syncthreads();
  for (int row = thread; row < kRange; row += kGroupers) starts[row] = places[row][0];
  __syncthreads();
  for_slice([&](int at, std::int32_t token, bool there) {
    const int word = nearest(token);
    int index = word - first_word;
    if (!there || index >= rows) index = -1;
    if (!__any_sync(0xffffffffu, index >= 0)) return;
    const std::uint32_t same = __match_any_sync(0xffffffffu, index), earlier = same & ((1u << lane) - 1);
    const int to = index < 0 ? 0 : places[index][slice] + __popc(earlier);
    __syncwarp();
    if (index >= 0) {
      if (earlier == 0) places[index][slice] += __popc(same);
      grouped[to] = {first_row + index, word == token ? at : ~at, to - starts[index],
                     starts[index + 1] - starts[index]};
    }
    __syncwarp();
  });
  if (blockIdx.x + 1 < gridDim.x) return;
  for (int at = starts[kRange] + thread; at < count; at += kGroupers) grouped[at].row = -1;
}

constexpr int kQuarters = 4;  // of the columns of a warp that has them all

/// What adds a row's tokens.
template <class T, class S>
struct Scatter {
  Strided<const T> dy;
  const Grouped* grouped;
  Strided<S> dweight;
  S* partials;              // (stretch, d): sums of stretches that are not their row's first
  std::uint32_t* arrivals;  // (stretch, quarter of a warp): how many of a row's stretches have been added up
  int t, count;
  std::int64_t d, warps;  // that have a row's columns

  /// One of a row's stretches, kParts quarters from column k on, which begins at place `first`. Lanes hold
  /// what has been grouped there and after it. Tokens are added in order, with several loads on their way. A
  /// row of one stretch is done then; of more, the first goes to dweight and the others to `partials`, and
  /// the last warp to arrive adds those.
  template <int N, int kParts, int kAhead>
  __device__ void add(int first, Grouped mine, std::int64_t k, std::int64_t arrival) const {
    const int lane = static_cast<int>(threadIdx.x % kWarp);
    const int row = __shfl_sync(0xffffffffu, mine.row, 0), rank = __shfl_sync(0xffffffffu, mine.rank, 0),
              tokens = __shfl_sync(0xffffffffu, mine.count, 0), stretch = min(tokens - rank, kStretch);
    const auto each_part = [&](auto&& f) {
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        if (k + part * kWarp * N < d) f(part, k + part * kWarp * N);
    };
    S sum[kParts][N] = {};
    if (rank == 0)
      each_part([&](int part, std::int64_t column) {
        const auto old = load_pack<N>(dweight(row) + column);
#pragma unroll
        for (int e = 0; e < N; ++e) sum[part][e] = old[e];
      });
    for (int begin = 0; begin < stretch; begin += kWarp) {
      const int length = min(stretch - begin, kWarp);  // tokens, a lane each
      if (begin > 0 && lane < length) mine = grouped[first + begin + lane];
      const std::uint32_t invalid = __ballot_sync(0xffffffffu, mine.number < 0);
      const int at = mine.number < 0 ? ~mine.number : mine.number, i = at / t;
      const std::int64_t offset = dy(i, at - i * t) - dy.data;
      for (int start = 0; start < length; start += kAhead) {
        Pack<T, N> packs[kAhead][kParts];
#pragma unroll
        for (int n = 0; n < kAhead; ++n) {
          const T* const from = dy.data + __shfl_sync(0xffffffffu, offset, start + n);
          if (start + n < length)
            each_part([&](int part, std::int64_t column) { packs[n][part] = load_pack<N>(from + column); });
        }
#pragma unroll
        for (int n = 0; n < kAhead; ++n) {
          if (start + n >= length) break;
          const bool valid = !(invalid >> (start + n) & 1);
#pragma unroll
          for (int part = 0; part < kParts; ++part)
#pragma unroll
            for (int e = 0; e < N; ++e) sum[part][e] += valid ? packs[n][part][e] : not_a_number<S>();
        }
      }
    }
    // No two stretches but rows' first ones begin in the same kStretch places.
    const auto partial = [&](int n) { return partials + (first - rank + n * kStretch) / kStretch * d; };
    S* const to = rank == 0 ? dweight(row) : partial(rank / kStretch);
    each_part([&](int part, std::int64_t column) { store_pack(to + column, sum[part]); });
    if (tokens <= kStretch) return;
    const int stretches = (tokens + kStretch - 1) / kStretch;
    __threadfence();
    __syncwarp();
    std::uint32_t* const counter = arrivals + ((first - rank) / kStretch + 1) * warps * kQuarters + arrival;
    std::uint32_t arrived = lane == 0 ? atomicAdd(counter, 1u) : 0;
    if (__shfl_sync(0xffffffffu, arrived, 0) + 1 < static_cast<std::uint32_t>(stretches)) return;
    __syncwarp();
    __threadfence();
    each_part([&](int, std::int64_t column) {
      for (int e = 0; e < N; ++e) {
        S* const out = dweight(row) + column + e;
        S all = __ldcg(out);
        for (int n = 1; n < stretches; ++n) all += __ldcg(partial(n) + column + e);
        *out = all;
      }
    });
  }
};

/// A warp a place and kQuarters * kWarp * N columns. A row of few tokens is added by its first one's warp; of
/// more, the warps of a stretch's first tokens share the columns, with more loads on their way.
template <int N, class T, class S>
__global__ void __launch_bounds__(kThreads, 4) scatter_add(const __grid_constant__ Scatter<T, S> a) {
  constexpr int kAhead = sizeof(Pack<T, N>) > 8 ? 8 : 16;
  const std::int64_t warp = global_index() / kWarp;
  const int first = static_cast<int>(warp / a.warps), lane = static_cast<int>(threadIdx.x % kWarp);
  if (first >= a.count) return;
  Grouped mine = {};
  if (first + lane < a.count) mine = a.grouped[first + lane];
  const int row = __shfl_sync(0xffffffffu, mine.row, 0), rank = __shfl_sync(0xffffffffu, mine.rank, 0),
            tokens = __shfl_sync(0xffffffffu, mine.count, 0);
  const int place = rank % kStretch, length = min(tokens - (rank - place), kStretch);
  const int sharing = tokens < kQuarters ? 1 : min(length, kQuarters);
  if (row < 0 || place >= sharing) return;
  const std::int64_t column = warp % a.warps * kQuarters, k = (column * kWarp + lane) * N;
  if (tokens < kQuarters) return a.template add<N, kQuarters, kQuarters - 1>(first, mine, k, column);
  if (place > 0 && lane < length) mine = a.grouped[first - place + lane];
  for (int quarter = place; quarter < kQuarters; quarter += sharing)
    a.template add<N, 1, kAhead>(first - place, mine, k + quarter * kWarp * N, column + quarter);
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
  check(count <= std::numeric_limits<std::int32_t>::max() - kWarp, op,
        "tokens: {} are more than can be grouped", count);
  const std::int64_t pieces = (count + kStretch - 1) / kStretch;  // at most so many stretches are not first
  dispatch_storage(a.dy.dtype(), op, [&](auto zero) {
    using T = decltype(zero);
    using S = Compute<T>;
    constexpr int kMost = 16 / sizeof(S);
    const int n = in_packs(a.dy, kMost) && in_packs(a.dweight, kMost) ? kMost : 1;
    const std::int64_t columns = kQuarters * kWarp * n, warps = (d + columns - 1) / columns;
    const std::int64_t arrival_count = (pieces + 1) * warps * kQuarters;
    const Workspace<Grouped> grouped(count, stream, op);
    const Workspace<std::uint32_t> arrivals(arrival_count, stream, op);
    const Workspace<S> partials(pieces > 1 ? pieces * d : 0, stream, op);
    launch(op, stream, {(shard.rows + kRange - 1) / kRange, kGroupers}, group_tokens,
           strided<const std::int32_t>(a.tokens), static_cast<int>(t), static_cast<int>(count), shard,
           grouped.data(), arrivals.data(), arrival_count);
    launch(op, stream, thread_each(count * warps * kWarp),
           n == kMost ? scatter_add<kMost, T, S> : scatter_add<1, T, S>,
           Scatter<T, S>{strided<const T>(a.dy), grouped.data(), strided<S>(a.dweight), partials.data(),
                         arrivals.data(), static_cast<int>(t), static_cast<int>(count), d, warps});
  });
}

}  // namespace transmamba::cuda
