// Products of bfloat16 by cuBLASLt, accumulated in float32.
//
// Which of cuBLASLt's algorithms is used must not change results, or two runs could differ. Its heuristic's
// first suggestion, which depends on nothing but the problem, the library and the GPU, says what the bits
// are. For large products the first call tries the others on the actual operands, and takes the fastest of
// those that give the same bits in all of C: on an H200 that is every one that sums each element in one
// sequence. So a noisy clock, too little memory to try, or a first call that is being captured change only
// the speed. Sums in several parts (split K) are allowed only where the parts are float32 and added in a
// fixed order. What this relies on: the heuristic and each algorithm repeat themselves, and algorithms that
// agree in all of a million sums always do.
#include "kernels/cuda/gemm_bf16.cuh"

#include <cublasLt.h>

#include <bit>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "kernels/cuda/device.cuh"
#include "kernels/workspace.h"

namespace transmamba::cuda {
namespace {

constexpr std::size_t kWorkspace = workspace::kGemm;
constexpr int kCandidates = 16, kTries = 3;
constexpr std::int64_t kWorthTrying = 1 << 20;  // elements of C; among fewer, another order could pass unseen

void check_cublas(cublasStatus_t status) {
  if (status != CUBLAS_STATUS_SUCCESS) fail("gemm", "cuBLASLt: {}", cublasLtGetStatusString(status));
}

int current_device() {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "gemm");
  return device;
}

int processors(int device) {
  int count = 0;
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "gemm");
  return count;
}

/// cuBLASLt on a device for the calling thread.
class Handle {
 public:
  Handle() { check_cublas(cublasLtCreate(&handle_)); }
  ~Handle() { cublasLtDestroy(handle_); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  cublasLtHandle_t get() const { return handle_; }

 private:
  cublasLtHandle_t handle_ = nullptr;
};
cublasLtHandle_t handle_of_thread(int device) {
  thread_local std::map<int, std::unique_ptr<Handle>> handles;
  auto& handle = handles[device];
  if (!handle) handle = std::make_unique<Handle>();
  return handle->get();
}

/// What one call runs with.
struct Context {
  cublasLtHandle_t handle;
  void* workspace;
};

/// cuBLASLt's own type has no name, at which nvcc 13.0 fails when it is in a container.
struct Algorithm {
  cublasLtMatmulAlgo_t value;
};

cudaDataType_t type_of(DType dtype) { return dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F; }

/// Bytes, up to 16, that addresses of rows are multiples of.
std::uint32_t alignment(const ConstView& x) {
  const auto bits = reinterpret_cast<std::uintptr_t>(x.raw()) |
                    static_cast<std::uintptr_t>(leading(x) * size_of(x.dtype())) | 16;
  return std::uint32_t{1} << std::countr_zero(bits);
}

/// A Gemm in cuBLASLt's words. It reads a row-major matrix as its transpose: C^T = op(B)^T op(A)^T + beta
/// D^T.
struct Problem {
  mutable cublasLtMatmulDescOpaque_t operation;  // cuBLASLt takes no pointers to const
  mutable cublasLtMatrixLayoutOpaque_t first, second, addend, result;
  ConstView a, b, d;
  float beta;

  Problem(const Gemm& g, int device)
      : a(g.a),
        b(g.b),
        d(g.addend && g.beta != 0 ? g.addend : ConstView(g.c)),
        beta(static_cast<float>(g.beta)) {
    // To add 1 C in place cuBLASLt lets memory do the sum, of a product rounded to C's type before. The next
    // float32 after 1 makes it add in float32 as it does elsewhere.
    if (g.c.dtype() == DType::bf16 && d.raw() == g.c.raw() && beta == 1) beta = std::nextafter(1.0f, 2.0f);
    check_cublas(cublasLtMatmulDescInit(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    set_transpose(CUBLASLT_MATMUL_DESC_TRANSA, g.transpose_b);
    set_transpose(CUBLASLT_MATMUL_DESC_TRANSB, g.transpose_a);
    if (const std::int32_t count = processors(device) - g.spare; g.spare > 0 && count > 0)
      check_cublas(cublasLtMatmulDescSetAttribute(&operation, CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET, &count,
                                                  sizeof count));
    init(first, b), init(second, a), init(addend, d), init(result, g.c);
  }
  /// `c` is shaped like the Gemm's.
  cublasStatus_t run(const Context& context, const Algorithm& algorithm, void* c,
                     const Stream& stream) const {
    const float one = 1;
    return cublasLtMatmul(context.handle, &operation, &one, b.raw(), &first, a.raw(), &second, &beta, d.raw(),
                          &addend, c, &result, &algorithm.value, context.workspace, kWorkspace,
                          handle_of(stream));
  }

 private:
  void set_transpose(cublasLtMatmulDescAttributes_t which, bool transpose) {
    const cublasOperation_t value = transpose ? CUBLAS_OP_T : CUBLAS_OP_N;
    check_cublas(cublasLtMatmulDescSetAttribute(&operation, which, &value, sizeof value));
  }
  static void init(cublasLtMatrixLayoutOpaque_t& layout, const ConstView& x) {
    check_cublas(cublasLtMatrixLayoutInit(&layout, type_of(x.dtype()), static_cast<std::uint64_t>(x.dim(1)),
                                          static_cast<std::uint64_t>(x.dim(0)), leading(x)));
  }
};

/// Everything that the choice of an algorithm depends on.
std::vector<std::int64_t> key_of(const Gemm& g, const Problem& problem, int device) {
  std::vector<std::int64_t> key{device,
                                g.transpose_a,
                                g.transpose_b,
                                g.a.dim(0),
                                g.a.dim(1),
                                g.b.dim(0),
                                g.b.dim(1),
                                g.beta != 0,
                                problem.d.raw() == g.c.raw(),
                                g.spare,
                                static_cast<std::int64_t>(g.c.dtype())};
  for (const ConstView& x : {g.a, g.b, problem.d, ConstView(g.c)})
    key.insert(key.end(), {leading(x), alignment(x)});
  return key;
}

/// What cuBLASLt's heuristic suggests, its favourite first.
std::vector<Algorithm> suggestions(const Gemm& g, const Problem& problem, const Context& context) {
  cublasLtMatmulPreferenceOpaque_t preference;
  check_cublas(cublasLtMatmulPreferenceInit(&preference));
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t what, const auto& value) {
    check_cublas(cublasLtMatmulPreferenceSetAttribute(&preference, what, &value, sizeof value));
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspace);
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, std::uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment(g.b));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment(g.a));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment(problem.d));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment(g.c));
  cublasLtMatmulHeuristicResult_t found[kCandidates];
  int count = 0;
  cublasLtMatmulAlgoGetHeuristic(context.handle, &problem.operation, &problem.first, &problem.second,
                                 &problem.addend, &problem.result, &preference, kCandidates, found, &count);
  std::vector<Algorithm> all;
  for (int i = 0; i < count; ++i)
    if (found[i].state == CUBLAS_STATUS_SUCCESS) all.push_back({found[i].algo});
  check(!all.empty(), "gemm",
        "cuBLASLt has no algorithm for a {} with strides {}, b {} with strides {}, c {} of {}", g.a.shape(),
        g.a.strides(), g.b.shape(), g.b.strides(), g.c.shape(), g.c.dtype());
  return all;
}

struct Counts {
  unsigned long long different, nonzero;
};

/// Counts elements of x that differ from y's, and those that are not zero. A grid of any size.
template <class Bits>
__global__ void compare(const Bits* x, const Bits* y, std::int64_t n, std::int64_t leading, std::int64_t size,
                        Counts* counts) {
  unsigned long long different = 0, nonzero = 0;
  for (std::int64_t i = global_index(); i < size; i += static_cast<std::int64_t>(gridDim.x) * blockDim.x) {
    const std::int64_t at = i / n * leading + i % n;
    different += x[at] != y[at], nonzero += x[at] != 0;
  }
  atomicAdd(&counts->different, different);
  atomicAdd(&counts->nonzero, nonzero);
}

/// Trials of algorithms, with results in memory of their own, which goes back to the driver after them: a
/// model's arena would keep it for good. All of it waits for the GPU.
class Trials {
 public:
  Trials(const Gemm& g, const Problem& problem, const Context& context, const Stream& stream)
      : g_(g), problem_(problem), context_(context), stream_(stream) {
    const std::int64_t last = (g.c.dim(0) - 1) * leading(g.c) + g.c.dim(1);
    bytes_ = static_cast<std::size_t>(last * size_of(g.c.dtype()));
    for (cudaEvent_t* event : {&start_, &stop_}) check_cuda(cudaEventCreate(event), "gemm");
    enough_ = cudaMallocAsync(&expected_, bytes_, handle_of(stream)) == cudaSuccess &&
              cudaMallocAsync(&got_, bytes_, handle_of(stream)) == cudaSuccess &&
              cudaMallocAsync(&counts_, sizeof(Counts), handle_of(stream)) == cudaSuccess;
    if (!enough_) cudaGetLastError();  // or the next launch would report this one
  }
  ~Trials() {
    for (void* memory : {expected_, got_, counts_})
      if (memory) cudaFreeAsync(memory, handle_of(stream_));
    cudaStreamSynchronize(handle_of(stream_));  // at which the driver takes back what its pool has free
    for (cudaEvent_t event : {start_, stop_}) cudaEventDestroy(event);
  }
  Trials(const Trials&) = delete;
  Trials& operator=(const Trials&) = delete;

  bool enough_memory() const { return enough_; }
  /// The result that others are compared with. False if most of it is zero: then all orders give the same.
  bool expect(const Algorithm& algorithm) {
    check_cublas(problem_.run(context_, algorithm, expected_, stream_));
    return 2 * static_cast<std::int64_t>(compare_with(expected_).nonzero) > g_.c.numel();
  }
  /// Whether it works and gives the expected bits.
  bool agrees(const Algorithm& algorithm) {
    return problem_.run(context_, algorithm, got_, stream_) == CUBLAS_STATUS_SUCCESS &&
           compare_with(got_).different == 0;
  }
  /// The least of some measurements, in ms.
  float time(const Algorithm& algorithm) {
    constexpr int kTimes = 5;
    float least = std::numeric_limits<float>::infinity();
    for (int i = 0; i < kTimes; ++i) {
      check_cuda(cudaEventRecord(start_, handle_of(stream_)), "gemm");
      check_cublas(problem_.run(context_, algorithm, got_, stream_));
      check_cuda(cudaEventRecord(stop_, handle_of(stream_)), "gemm");
      check_cuda(cudaEventSynchronize(stop_), "gemm");
      float ms = 0;
      check_cuda(cudaEventElapsedTime(&ms, start_, stop_), "gemm");
      least = std::min(least, ms);
    }
    return least;
  }

 private:
  Counts compare_with(const void* other) {
    check_cuda(cudaMemsetAsync(counts_, 0, sizeof(Counts), handle_of(stream_)), "gemm");
    const auto enqueue = [&](auto bits) {
      using Bits = decltype(bits);
      launch("gemm", stream_, {1024}, compare<Bits>, static_cast<const Bits*>(expected_),
             static_cast<const Bits*>(other), g_.c.dim(1), leading(g_.c), g_.c.numel(),
             static_cast<Counts*>(counts_));
    };
    g_.c.dtype() == DType::bf16 ? enqueue(std::uint16_t{}) : enqueue(std::uint32_t{});
    Counts counts;
    check_cuda(cudaMemcpyAsync(&counts, counts_, sizeof counts, cudaMemcpyDefault, handle_of(stream_)),
               "gemm");
    check_cuda(cudaStreamSynchronize(handle_of(stream_)), "gemm");
    return counts;
  }

  const Gemm& g_;
  const Problem& problem_;
  const Context& context_;
  const Stream& stream_;
  std::size_t bytes_ = 0;
  cudaEvent_t start_ = nullptr, stop_ = nullptr;
  void *expected_ = nullptr, *got_ = nullptr, *counts_ = nullptr;
  bool enough_ = false;
};

bool capturing(const Stream& stream) {
  cudaStreamCaptureStatus status;
  check_cuda(cudaStreamIsCapturing(handle_of(stream), &status), "gemm");
  return status != cudaStreamCaptureStatusNone;
}

struct Choice {
  Algorithm algorithm;
  bool final;  ///< or another call may find a faster one
};
struct Known {
  Algorithm algorithm;
  bool final = false;
  int tries = 0;  ///< of eager calls
};
Choice choose(const Gemm& g, const Problem& problem, const Context& context, const Stream& stream) {
  const auto all = suggestions(g, problem, context);
  if (g.c.numel() < kWorthTrying || all.size() == 1) return {all.front(), true};
  if (capturing(stream)) return {all.front(), false};
  Trials trials(g, problem, context, stream);
  if (!trials.enough_memory() || !trials.expect(all.front())) return {all.front(), false};
  Choice best{all.front(), true};
  float least = std::numeric_limits<float>::infinity();
  for (const auto& algorithm : all) {
    if (!trials.agrees(algorithm)) continue;
    const float ms = trials.time(algorithm);
    if (ms < least) least = ms, best.algorithm = algorithm;
  }
  return best;
}

}  // namespace

void gemm_bf16(const Gemm& g, const Stream& stream) {
  static std::mutex mutex;
  static std::map<std::vector<std::int64_t>, Known> choices;
  const int device = current_device();
  const Workspace<std::byte> memory(kWorkspace, stream, "gemm");
  const Context context{handle_of_thread(device), memory.data()};
  const Problem problem(g, device);
  const auto algorithm = [&] {
    const std::lock_guard lock(mutex);
    Known& known = choices[key_of(g, problem, device)];
    if (!known.final) {
      const Choice choice = choose(g, problem, context, stream);
      known.algorithm = choice.algorithm;
      known.tries += !capturing(stream);
      known.final = choice.final || known.tries == kTries;
    }
    return known.algorithm;
  }();
  check_cublas(problem.run(context, algorithm, g.c.raw(), stream));
}

}  // namespace transmamba::cuda
