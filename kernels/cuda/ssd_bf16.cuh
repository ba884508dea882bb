// The SSD on bfloat16 with tensor cores: what its kernels share.
//
// A sequence of each head is cut in `pieces`, enough to fill the GPU, and a piece in chunks of 64 tokens. A
// first kernel makes the pieces' segment summaries (kernels/ssd.h). Of these come the states that enter
// pieces: the scan's blocks combine them themselves; for the gradients' two walks, whose threads are few, a
// second kernel does. A block walks its piece with the state in float32 registers: states never go through
// memory by chunk. With cum_t = A (dt_0 + .. + dt_t) within a chunk and E_ts = exp(cum_t - cum_s), s <= t:
//   Y = ((Q K^T) o E o dt_s) V + exp(cum_t) Q S,     S' = exp(cum_63) S + (dt_s exp(cum_63 - cum_s) K)^T V
// Exponents are sums <= 0. Tokens past the end count as zeros with dt = 0.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/cuda/vectors.cuh"
#include "kernels/ssd.h"
#include "kernels/workspace.h"

namespace transmamba::cuda {

void ssd_summary_bf16(const SsdSummary& a, const Stream& stream);
void ssd_entry_gradient_bf16(const SsdEntryGradient& a, const Stream& stream);
void ssd_summary_backward_bf16(const SsdSummaryBackward& a, const Stream& stream);
void ssd_scan_bf16(const SsdScan& a, const Stream& stream);
void ssd_scan_backward_bf16(const SsdScanBackward& a, const Stream& stream);

namespace ssd {
constexpr int kTokens = workspace::SsdCut::kTokens;  // of a chunk
constexpr int kBlocksPerProcessor = workspace::SsdCut::kBlocksPerProcessor;

/// A view (b, t, h, width) of bfloat16: a row a token.
template <class T>
struct TokenRows {
  T* data = nullptr;
  std::int64_t batch = 0, token = 0, head = 0;  // strides
  TokenRows() = default;
  template <class Byte>
  TokenRows(const BasicView<Byte>& x, std::string_view op, std::string_view name)
      : data(reinterpret_cast<T*>(x.raw())), batch(x.stride(0)), token(x.stride(1)), head(x.stride(2)) {
    const auto aligned = [](std::int64_t stride, std::int64_t extent) {
      return extent <= 1 || stride % 8 == 0;
    };
    check(x.numel() == 0 || (reinterpret_cast<std::uintptr_t>(x.raw()) % 16 == 0 &&
                             aligned(batch, x.dim(0)) && aligned(token, x.dim(1)) && aligned(head, x.dim(2))),
          op, "{}: rows of bfloat16 must begin at multiples of 16 bytes, got strides {}", name, x.strides());
  }
  __device__ T* row(std::int64_t b, std::int64_t t, std::int64_t h) const {
    return data + b * batch + t * token + h * head;
  }
};
using InRows = TokenRows<const bf16>;
using OutRows = TokenRows<bf16>;

inline int processors() {
  int device = 0, count = 0;
  check_cuda(cudaGetDevice(&device), "ssd");
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "ssd");
  return count;
}

/// How much work there is, and how it is cut on this GPU.
struct Cut : workspace::SsdCut {
  Cut(std::int64_t b_, std::int64_t t_, std::int64_t h_) : SsdCut(b_, t_, h_, processors()) {}
  __host__ __device__ std::int64_t heads() const { return b * h; }
};

/// Steps and decays of a chunk in shared memory. In powers of two: exp(x) is exp2 of these.
struct Steps {
  float dt[kTokens], cum[kTokens];
  float from_start[kTokens];  // exp(cum_t)
  float to_end[kTokens];      // exp(cum_63 - cum_t)
  float weight[kTokens];      // dt_t exp(cum_63 - cum_t)
};

/// The step sizes of one head, read a chunk ahead by one warp: two tokens a lane.
class StepReader {
 public:
  __device__ StepReader(const Strided<const float>& dt, std::int64_t b, std::int64_t h, std::int64_t t)
      : row_(dt(b) + h), stride_(dt.stride[1]), t_(t) {}
  __device__ void fetch(std::int64_t chunk) {
    const std::int64_t first = chunk * kTokens + threadIdx.x % kWarp * 2;
    x_ = first < t_ ? row_[first * stride_] : 0.f;
    y_ = first + 1 < t_ ? row_[(first + 1) * stride_] : 0.f;
  }
  /// `rate` is A in powers of two; weights decay by `later` more, also in powers of two.
  __device__ void put(Steps& out, float rate, float later = 0) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const float a = rate * x_, b = rate * y_;
    float sum = a + b;  // inclusive over lanes
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const float before = __shfl_up_sync(0xffffffffu, sum, distance);
      if (lane >= distance) sum += before;
    }
    const float end = __shfl_sync(0xffffffffu, sum, kWarp - 1);
    const float2 cum{sum - b, sum};
    const float2 to_end{exp2f(end - cum.x), exp2f(end - cum.y)};
    const auto store = [&](float* array, float2 value) {
      *reinterpret_cast<float2*>(array + 2 * lane) = value;
    };
    store(out.dt, {x_, y_});
    store(out.cum, cum);
    store(out.from_start, {exp2f(cum.x), exp2f(cum.y)});
    store(out.to_end, to_end);
    store(out.weight, {x_ * exp2f(end - cum.x + later), y_ * exp2f(end - cum.y + later)});
  }

 private:
  const float* row_;
  std::int64_t stride_, t_;
  float x_ = 0, y_ = 0;
};

/// A warp's 16 rows of a float32 matrix, as accumulators of kColumns / 8 products.
template <int kColumns>
struct Slice {
  float value[kColumns / 8][4];

  __device__ void fill(float x) {
#pragma unroll
    for (auto& tile : value)
#pragma unroll
      for (float& v : tile) v = x;
  }
  __device__ void scale(float factor) {
#pragma unroll
    for (auto& tile : value)
#pragma unroll
      for (float& v : tile) v *= factor;
  }
  /// f(row, column, value) of every element that this thread holds; rows count from 0 in the slice.
  template <class F>
  __device__ void each(F&& f) {
    const int g = static_cast<int>(threadIdx.x) % kWarp / 4, c = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int tile = 0; tile < kColumns / 8; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) f(g + i / 2 * 8, 8 * tile + c + i % 2, value[tile][i]);
  }
  /// B of k = columns 16 step.., n = rows 8 half..
  __device__ std::uint32_t b0(int step, int half) const {
    return pack(value[2 * step][2 * half], value[2 * step][2 * half + 1]);
  }
  __device__ std::uint32_t b1(int step, int half) const {
    return pack(value[2 * step + 1][2 * half], value[2 * step + 1][2 * half + 1]);
  }
};

/// The accumulators of 64 tokens and 16 columns.
constexpr int kRowTiles = kTokens / 16;
using Columns = float[kRowTiles][2][4];

/// acc += X B, X (64, 16 kSteps) and B (16 kSteps, 16) given a step of k at a time by b(step, b[4]).
template <int kSteps, class X, class B>
__device__ void tokens_times(Columns& acc, const X& x, B&& b) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    std::uint32_t right[4];
    b(step, right);
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      std::uint32_t a[4];
      x.load_a(a, 16 * i, 16 * step);
      multiply_add(acc[i][0], a, right[0], right[1]);
      multiply_add(acc[i][1], a, right[2], right[3]);
    }
  }
}

/// acc += M X[.., column..], M (64, 64) of which the blocks with row >= column (kLower) or row <= column are
/// read.
template <bool kLower, class X>
__device__ void add_masked_times(Columns& acc, const Tile<kTokens, kTokens>& m, const X& x, int column) {
#pragma unroll
  for (int j = 0; j < kRowTiles; ++j) {
    std::uint32_t right[4];
    x.load_b(right, 16 * j, column);
#pragma unroll
    for (int i = kLower ? j : 0; i < (kLower ? kRowTiles : j + 1); ++i) {
      std::uint32_t a[4];
      m.load_a(a, 16 * i, 16 * j);
      multiply_add(acc[i][0], a, right[0], right[1]);
      multiply_add(acc[i][1], a, right[2], right[3]);
    }
  }
}

/// acc's rows times a factor each.
__device__ inline void scale_rows(Columns& acc, const float* factor) {
  const int g = static_cast<int>(threadIdx.x) % kWarp / 4;
#pragma unroll
  for (int j = 0; j < kRowTiles; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float f = factor[16 * j + g + 8 * half];
#pragma unroll
      for (int x = 0; x < 2; ++x) acc[j][x][2 * half] *= f, acc[j][x][2 * half + 1] *= f;
    }
}

/// From each row the dot product with the same columns of `other`, summed over the warp's 16 columns, to
/// `sums` (64).
template <class X>
__device__ void dot_rows(const Columns& acc, const X& other, int column, float* sums) {
  const int g = static_cast<int>(threadIdx.x) % kWarp / 4, c = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int j = 0; j < kRowTiles; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 16 * j + g + 8 * half;
      float dot = 0;
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        const float2 with = other.get(row, column + 8 * x + c);
        dot += acc[j][x][2 * half] * with.x + acc[j][x][2 * half + 1] * with.y;
      }
      dot += __shfl_xor_sync(~0u, dot, 1);
      dot += __shfl_xor_sync(~0u, dot, 2);
      if (c == 0) sums[row] = dot;
    }
}

/// Stores 64 tokens x 16 columns of bfloat16; `out` is the first token's row at the first column, `left` how
/// many tokens there are.
template <class F>
__device__ void store_columns(bf16* out, std::int64_t stride, std::int64_t left, F&& value) {
  const int g = static_cast<int>(threadIdx.x) % kWarp / 4, c = static_cast<int>(threadIdx.x) % 4 * 2;
  out += g * stride + c;
  const std::int64_t step = 8 * stride;
  const auto store = [&](int row, int j, int half) {
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      const float2 both = value(j, x, half, row, 8 * x + c);
      *reinterpret_cast<std::uint32_t*>(out + 8 * x) = pack(both.x, both.y);
    }
    out += step;
  };
  if (left >= kTokens) {  // nearly always
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i) store(8 * i + g, i / 2, i % 2);
  } else {
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i)
      if (8 * i + g < left) store(8 * i + g, i / 2, i % 2);
  }
}

/// state = decay state + (factor o X[.., row..])^T Z: the warp's 16 rows of a state, from 64 tokens.
template <int kColumns, class X, class Z>
__device__ void update_state(Slice<kColumns>& state, float decay, const X& x, int row, const float* factor,
                             const Z& z) {
  state.scale(decay);
#pragma unroll
  for (int j = 0; j < kTokens / 16; ++j) {
    std::uint32_t a[4];
    x.load_a_transposed(a, 16 * j, row);
    scale_along_k(a, factor, 16 * j);
#pragma unroll
    for (int tile = 0; tile < kColumns / 16; ++tile) {
      std::uint32_t b[4];
      z.load_b(b, 16 * j, 16 * tile);
      multiply_add(state.value[2 * tile], a, b[0], b[1]);
      multiply_add(state.value[2 * tile + 1], a, b[2], b[3]);
    }
  }
}

/// Block (i, j) of the lower triangle, i >= j, by its number 0 .. 9.
__device__ inline int triangle_row(int block) { return block < 1 ? 0 : block < 3 ? 1 : block < 6 ? 2 : 3; }
constexpr int kTriangle = 10;

/// The (16, 16) block of X Z^T whose rows are tokens `row`.. of X and columns tokens `column`.. of Z.
template <int kWidth, class X, class Z>
__device__ void token_products(float (&out)[2][4], const X& x, int row, const Z& z, int column) {
#pragma unroll
  for (int step = 0; step < kWidth / 16; ++step) {
    std::uint32_t a[4], b[4];
    x.load_a(a, row, 16 * step);
    z.load_b_transposed(b, column, 16 * step);
    multiply_add(out[0], a, b[0], b[1]);
    multiply_add(out[1], a, b[2], b[3]);
  }
}

/// Summaries of all pieces: states (b h, pieces, n, p) and log decays (in powers of two) (b h, pieces).
struct Summaries {
  float* state = nullptr;
  float* log_decay = nullptr;
  int pieces = 0;
  template <class T>
  __device__ T* of(T* all, std::int64_t head, int piece, std::int64_t size) const {
    return all + (head * pieces + piece) * size;
  }
};

/// out[head] += the sum over sequences of parts (b, h, count). A block of one warp a head.
__device__ inline void add_parts(float* out, const float* parts, const Cut& cut, std::int64_t count) {
  const std::int64_t h = blockIdx.x;
  float sum = 0;
  for (std::int64_t i = threadIdx.x; i < cut.b * count; i += kWarp)
    sum += parts[(i / count * cut.h + h) * count + i % count];
  sum = warp_reduce<Plus>(sum);
  if (threadIdx.x == 0) out[h] += sum;
}

/// What pieces [first, first + count) add to a state, sum_s weight_s x_s z_s^T: x = k, z = v, with weights
/// that reach from a token to its piece's end; or to the gradient of an earlier state, x = q, z = dy, with
/// weights from the piece's start.
struct PieceSummary {
  ConstView x, z;
  Summaries out;
  int first = 0, count = 0;
  bool are_gradients = false;
};
/// Enqueues one or two of them.
void summarise_pieces(const Cut& cut, const ConstView& dt, const ConstView& a_log,
                      std::initializer_list<PieceSummary> sums, const Stream& stream, std::string_view op);

/// A state on its way through all pieces, or a gradient on its way back: to `out`; where that is absent each
/// piece's state becomes the one that the way brings to it, and the last piece needs no summary.
struct Passage {
  Summaries pieces;
  bool backwards = false;
  Strided<const float> in = {};             // before the first; absent: zero
  Strided<const float> decays_after = {};   // (b, h), natural; absent: none
  Strided<float> out = {}, log_decay = {};  // the latter, of all pieces, may be absent
};
/// Enqueues one or two of them, with states (n, p).
void pass_pieces(const Cut& cut, std::int64_t n, std::int64_t p, std::initializer_list<Passage> passages,
                 const Stream& stream, std::string_view op);

/// Calls f with constants n and p of the widths that have a kernel.
template <class F>
void with_widths(std::int64_t n, std::int64_t p, std::string_view op, F&& f) {
  const auto with = [&](std::int64_t width, std::string_view name, auto&& g) {
    switch (width) {
      case 64: return g(std::integral_constant<int, 64>());
      case 96: return g(std::integral_constant<int, 96>());
      case 128: return g(std::integral_constant<int, 128>());
      default:
        fail(op, "{}: the bfloat16 kernels have head widths 64, 96 and 128, got {}; float32 has all", name,
             width);
    }
  };
  with(n, "n (model.qk_head_dim)",
       [&](auto width) { with(p, "p (model.v_head_dim)", [&](auto p_) { f(width, p_); }); });
}

}  // namespace ssd
}  // namespace transmamba::cuda
