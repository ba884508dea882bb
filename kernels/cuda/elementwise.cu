#include "kernels/elementwise.h"

#include "kernels/cuda/vectors.cuh"

namespace transmamba::cuda {
namespace {

/// Every element of two views of one shape. Dims that lie one after the other in memory in both are joined,
/// so that contiguous views need no division.
struct Walk {
  int rank = 1;
  std::int64_t extent[Shape::kMaxDims] = {1}, x[Shape::kMaxDims] = {}, y[Shape::kMaxDims] = {};
  std::int64_t size = 1;

  Walk(const ConstView& from, const ConstView& to) : size(from.numel()) {
    for (int i = 0; i < from.rank(); ++i) {
      if (from.dim(i) == 1) continue;
      int last = rank - 1;
      const bool joined = x[last] == from.dim(i) * from.stride(i) && y[last] == to.dim(i) * to.stride(i);
      if (!joined && extent[last] != 1) extent[last = rank++] = 1;
      extent[last] *= from.dim(i), x[last] = from.stride(i), y[last] = to.stride(i);
    }
  }
  __device__ void locate(std::int64_t i, std::int64_t& in_x, std::int64_t& in_y) const {
    in_x = in_y = 0;
    for (int d = rank - 1; d > 0; i /= extent[d--])
      in_x += i % extent[d] * x[d], in_y += i % extent[d] * y[d];
    in_x += i * x[0], in_y += i * y[0];
  }
  /// Whether n elements that follow each other can be taken at a time, but for the last of a long row.
  bool in_packs_of(int n) const {
    const int last = rank - 1;
    if (extent[last] > 1 && (x[last] != 1 || y[last] != 1)) return false;
    for (int i = 0; i < last; ++i)
      if (x[i] % n != 0 || y[i] % n != 0) return false;
    return rank == 1 || extent[last] % n == 0;
  }
};

/// y = value.
template <class Y>
struct Set {
  static constexpr bool kReadsX = false, kReadsY = false;
  Compute<Y> value;
  __device__ Compute<Y> operator()(Compute<Y>, Compute<Y>) const { return value; }
};
/// y = x.
template <class Y>
struct Assign {
  static constexpr bool kReadsX = true, kReadsY = false;
  template <class X>
  __device__ Compute<Y> operator()(X x, Compute<Y>) const {
    return static_cast<Compute<Y>>(x);
  }
};
/// y = y + x.
template <class Y>
struct Increase {
  static constexpr bool kReadsX = true, kReadsY = true;
  __device__ Compute<Y> operator()(Compute<Y> x, Compute<Y> y) const { return y + x; }
};

template <int N, class X, class Y, class F>
__device__ void apply(F f, const X* x, Y* y) {
  Pack<X, N> from;
  Pack<Y, N> to;
  if constexpr (F::kReadsX) from = load_pack<N>(x);
  if constexpr (F::kReadsY) to = load_pack<N>(y);
  Compute<Y> out[N];
#pragma unroll
  for (int i = 0; i < N; ++i)
    out[i] = f(F::kReadsX ? from[i] : Compute<X>(0), F::kReadsY ? to[i] : Compute<Y>(0));
  store_pack(y, out);
}

/// A thread N elements.
template <int N, class X, class Y, class F>
__global__ void for_each(Walk walk, F f, const X* x, Y* y) {
  const std::int64_t i = global_index() * N;
  if (i >= walk.size) return;
  std::int64_t in_x, in_y;
  walk.locate(i, in_x, in_y);
  if constexpr (N > 1)
    if (i + N > walk.size) {
      for (std::int64_t k = 0; i + k < walk.size; ++k) apply<1>(f, x + in_x + k, y + in_y + k);
      return;
    }
  apply<N>(f, x + in_x, y + in_y);
}

template <class X, class Y, class F>
void run(std::string_view op, const ConstView& x, const View& y, F f, const Stream& stream) {
  constexpr int kPack = 16 / sizeof(Y);
  const Walk walk(x, y);
  const auto begins_well = [](const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; };
  if (walk.in_packs_of(kPack) && begins_well(x.raw()) && begins_well(y.raw()))
    launch(op, stream, thread_each((walk.size + kPack - 1) / kPack), for_each<kPack, X, Y, F>, walk, f,
           x.ptr<X>(), y.ptr<Y>());
  else
    launch(op, stream, thread_each(walk.size), for_each<1, X, Y, F>, walk, f, x.ptr<X>(), y.ptr<Y>());
}

/// Numbers are cut into at most kSumBlocks blocks of a multiple of kSumPiece.
constexpr std::int64_t kSumBlocks = 1024, kSumPiece = 8192;

/// With `result`, this block's sum is added there.
template <int N, class T>
__global__ void sum_blocks(const T* x, bool squares, std::int64_t n, std::int64_t length, double* sums,
                           double* result) {
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * length, end = min(n, begin + length);
  double sum = 0;
  const auto add = [&](Compute<T> x) {
    const double value = static_cast<double>(x);
    sum += squares ? value * value : value;
  };
  const std::int64_t whole = begin + (end - begin) / N * N;
#pragma unroll 4
  for (std::int64_t i = begin + threadIdx.x * N; i < whole; i += blockDim.x * N) {
    const auto pack = load_pack<N>(x + i);
#pragma unroll
    for (int e = 0; e < N; ++e) add(pack[e]);
  }
  for (std::int64_t i = whole + threadIdx.x; i < end; i += blockDim.x) add(load(x + i));
  sum = block_reduce<Plus>(sum);
  if (threadIdx.x > 0) return;
  if (result)
    *result += sum;
  else
    sums[blockIdx.x] = sum;
}

__global__ void add_sums(const double* sums, std::int64_t n, double* result) {
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += sums[i];
  sum = block_reduce<Plus>(sum);
  if (threadIdx.x == 0) *result += sum;
}

}  // namespace

void fill(const Fill& a, const Stream& stream) {
  dispatch_storage(a.y.dtype(), "fill", [&](auto zero) {
    using T = decltype(zero);
    run<T, T>("fill", a.y, a.y, Set<T>{static_cast<Compute<T>>(a.value)}, stream);
  });
}

void copy(const Copy& a, const Stream& stream) {
  dispatch_storage(a.x.dtype(), "copy", [&](auto from) {
    dispatch_storage(a.y.dtype(), "copy", [&](auto to) {
      run<decltype(from), decltype(to)>("copy", a.x, a.y, Assign<decltype(to)>{}, stream);
    });
  });
}

void add(const Add& a, const Stream& stream) {
  dispatch_storage(a.x.dtype(), "add", [&](auto zero) {
    using T = decltype(zero);
    run<T, T>("add", a.x, a.y, Increase<T>{}, stream);
  });
}

void sum(const Sum& a, const Stream& stream) {
  dispatch_storage(a.x.dtype(), "sum", [&](auto zero) {
    using T = decltype(zero);
    constexpr int kMost = 16 / sizeof(T);
    const std::int64_t n = a.x.numel(), pieces = (n + kSumPiece - 1) / kSumPiece;
    if (n == 0) return;
    const std::int64_t length = (pieces + kSumBlocks - 1) / kSumBlocks * kSumPiece;
    const std::int64_t blocks = (n + length - 1) / length;
    double* const result = a.result.ptr<double>();
    const Workspace<double> sums(blocks > 1 ? blocks : 0, stream, "sum");
    const bool packed = reinterpret_cast<std::uintptr_t>(a.x.raw()) % 16 == 0;
    launch("sum", stream, {blocks}, packed ? sum_blocks<kMost, T> : sum_blocks<1, T>, a.x.ptr<T>(), a.squares,
           n, length, sums.data(), blocks > 1 ? nullptr : result);
    if (blocks > 1) launch("sum", stream, {1, 1024}, add_sums, sums.data(), blocks, result);
  });
}

}  // namespace transmamba::cuda
