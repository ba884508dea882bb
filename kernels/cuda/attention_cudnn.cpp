// The only file that sees cuDNN and its frontend, whose headers take a minute to compile.
#include "kernels/cuda/attention_cudnn.h"

#include <cuda_runtime.h>
#include <cudnn.h>
#include <cudnn_frontend.h>

#include <cmath>
#include <map>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

namespace transmamba::cuda {

namespace graph = cudnn_frontend::graph;

struct FusedPlan {
  graph::Graph graph;
  cudnnHandle_t handle = nullptr;
  std::int64_t workspace = 0;
  std::string_view op;
  mutable bool captured = false;  ///< a graph may launch its kernels at any time
};

namespace {

using TensorPtr = std::shared_ptr<graph::Tensor_attributes>;
using Addresses = std::unordered_map<std::int64_t, void*>;

/// What cuDNN knows the arguments by.
enum Id : std::int64_t { kQ = 1, kK, kV, kO, kLse, kDout, kDq, kDk, kDv };

void check_cudnn(cudnnStatus_t status, std::string_view op) {
  if (status != CUDNN_STATUS_SUCCESS) fail(op, "cuDNN: {}", cudnnGetErrorString(status));
}

int current_device(std::string_view op) {
  int device = 0;
  const cudaError_t result = cudaGetDevice(&device);
  check(result == cudaSuccess, op, "CUDA: {}", cudaGetErrorString(result));
  return device;
}

/// cuDNN on a device for the calling thread: two threads must not share a handle.
class Handles {
 public:
  Handles() = default;
  Handles(const Handles&) = delete;
  Handles& operator=(const Handles&) = delete;
  ~Handles() {
    for (const auto& [device, handle] : handles_) cudnnDestroy(handle);
  }
  cudnnHandle_t get(int device, std::string_view op) {
    cudnnHandle_t& handle = handles_[device];
    if (!handle) check_cudnn(cudnnCreate(&handle), op);
    return handle;
  }

 private:
  std::map<int, cudnnHandle_t> handles_;
};

cudnnHandle_t handle_of_thread(int device, std::string_view op) {
  thread_local Handles handles;
  return handles.get(device, op);
}

/// Strides of a (b, t, h, width) view; that of a single index means nothing, and gets one that is aligned.
Shape strides_of(const ConstView& x) {
  Shape strides = x.strides();
  for (int i = 0; i < 3; ++i)
    if (x.dim(i) == 1) strides[i] = x.dim(3);
  return strides;
}

/// Everything that a plan depends on.
class Key {
 public:
  Key(int device, Mask mask) : numbers_{device, static_cast<std::int64_t>(mask)} {}
  Key& add(std::initializer_list<ConstView> views) {
    for (const ConstView& x : views) {
      const Shape strides = strides_of(x);
      for (int i = 0; i < x.rank(); ++i) numbers_.insert(numbers_.end(), {x.dim(i), strides[i]});
    }
    return *this;
  }
  bool operator<(const Key& other) const { return numbers_ < other.numbers_; }

 private:
  std::vector<std::int64_t> numbers_;
};

/// A training run has few shapes. Generation has another one for each token, so there is a bound; but what
/// was captured stays.
class Plans {
 public:
  template <class Make>
  const FusedPlan& get(const Key& key, Make&& make) {
    constexpr std::size_t kMost = 256;
    const auto known = plans_.find(key);
    if (known != plans_.end()) return *known->second;
    if (plans_.size() >= kMost)
      std::erase_if(plans_, [](const auto& plan) { return !plan.second->captured; });
    return *plans_.emplace(key, make()).first->second;
  }

 private:
  std::map<Key, std::unique_ptr<FusedPlan>> plans_;
};

/// A (b, t, h, width) view as cuDNN's (b, h, t, width).
graph::Tensor_attributes describe(Id id, const ConstView& x) {
  const Shape strides = strides_of(x);
  graph::Tensor_attributes out;
  out.set_uid(id)
      .set_data_type(cudnn_frontend::DataType_t::BFLOAT16)
      .set_dim({x.dim(0), x.dim(2), x.dim(1), x.dim(3)})
      .set_stride({strides[0], strides[2], strides[1], 1});
  return out;
}
graph::Tensor_attributes describe_lse(const ConstView& x) {
  graph::Tensor_attributes out;
  out.set_uid(kLse)
      .set_data_type(cudnn_frontend::DataType_t::FLOAT)
      .set_dim({x.dim(0), x.dim(1), x.dim(2), 1})
      .set_stride({x.dim(1) * x.dim(2), x.dim(2), 1, 1});
  return out;
}
/// The same for a tensor that the graph makes.
void set_output(const TensorPtr& tensor, const graph::Tensor_attributes& like) {
  tensor->set_output(true)
      .set_uid(like.get_uid())
      .set_data_type(like.get_data_type())
      .set_dim(like.get_dim())
      .set_stride(like.get_stride());
}

template <class Options>
Options options_of(std::string_view op, Mask mask, const ConstView& q, const ConstView& k) {
  using cudnn_frontend::DiagonalAlignment_t;
  Options options;
  options.set_name(std::string(op)).set_attn_scale(1 / std::sqrt(static_cast<float>(q.dim(3))));
  // For as many queries as keys both are the same, but told "bottom right" cuDNN's backward pass skips
  // nothing of what is masked, and takes twice as long.
  const bool square = q.dim(1) == k.dim(1);
  if (mask == Mask::causal)
    options.set_diagonal_alignment(square ? DiagonalAlignment_t::TOP_LEFT : DiagonalAlignment_t::BOTTOM_RIGHT)
        .set_diagonal_band_right_bound(0);
  return options;
}

std::unique_ptr<FusedPlan> begin(std::string_view op) {
  auto plan = std::make_unique<FusedPlan>();
  plan->op = op;
  plan->graph.set_io_data_type(cudnn_frontend::DataType_t::BFLOAT16)
      .set_intermediate_data_type(cudnn_frontend::DataType_t::FLOAT)
      .set_compute_data_type(cudnn_frontend::DataType_t::FLOAT);
  return plan;
}

template <class Arguments>
void build(FusedPlan& plan, int device, const Arguments& a) {
  plan.handle = handle_of_thread(device, plan.op);
  auto result = plan.graph.build(plan.handle, {cudnn_frontend::HeurMode_t::A});
  if (result.is_good()) result = plan.graph.get_workspace_size(plan.workspace);
  if (result.is_bad())
    fail(plan.op, "cuDNN {} refuses q {} with strides {}, k {}, v {}: {}", cudnnGetVersion(), a.q.shape(),
         a.q.strides(), a.k.shape(), a.v.shape(), result.get_message());
}

std::unique_ptr<FusedPlan> make_plan(const Attention& a, Mask mask, int device) {
  auto plan = begin("attention");
  graph::Graph& g = plan->graph;
  const auto [o, lse] =
      g.sdpa(g.tensor(describe(kQ, a.q)), g.tensor(describe(kK, a.k)), g.tensor(describe(kV, a.v)),
             options_of<graph::SDPA_attributes>(plan->op, mask, a.q, a.k).set_generate_stats(true));
  set_output(o, describe(kO, a.o));
  set_output(lse, describe_lse(a.lse));
  build(*plan, device, a);
  return plan;
}

std::unique_ptr<FusedPlan> make_plan(const AttentionBackward& a, Mask mask, bool deterministic, int device) {
  auto plan = begin("attention_backward");
  graph::Graph& g = plan->graph;
  const auto [dq, dk, dv] = g.sdpa_backward(
      g.tensor(describe(kQ, a.q)), g.tensor(describe(kK, a.k)), g.tensor(describe(kV, a.v)),
      g.tensor(describe(kO, a.o)), g.tensor(describe(kDout, a.dout)), g.tensor(describe_lse(a.lse)),
      options_of<graph::SDPA_backward_attributes>(plan->op, mask, a.q, a.k)
          .set_deterministic_algorithm(deterministic));
  set_output(dq, describe(kDq, a.dq));
  set_output(dk, describe(kDk, a.dk));
  set_output(dv, describe(kDv, a.dv));
  build(*plan, device, a);
  return plan;
}

void* address(const ConstView& x) { return const_cast<std::byte*>(x.raw()); }

void execute(const FusedPlan& plan, Addresses addresses, std::byte* workspace, const Stream& stream) {
  const auto handle = static_cast<cudaStream_t>(stream.handle);
  cudaStreamCaptureStatus status{};
  const cudaError_t known = cudaStreamIsCapturing(handle, &status);
  check(known == cudaSuccess, plan.op, "CUDA: {}", cudaGetErrorString(known));
  plan.captured |= status != cudaStreamCaptureStatusNone;
  check_cudnn(cudnnSetStream(plan.handle, handle), plan.op);
  auto result = plan.graph.execute(plan.handle, addresses, workspace);
  if (result.is_bad()) fail(plan.op, "cuDNN: {}", result.get_message());
}

}  // namespace

const FusedPlan& fused_plan(const Attention& a, Mask mask) {
  thread_local Plans plans;
  const int device = current_device("attention");
  return plans.get(Key(device, mask).add({a.q, a.k, a.v, a.o}), [&] { return make_plan(a, mask, device); });
}

const FusedPlan& fused_plan(const AttentionBackward& a, Mask mask, bool deterministic) {
  thread_local Plans of_kind[2];
  Plans& plans = of_kind[deterministic];
  const int device = current_device("attention_backward");
  return plans.get(Key(device, mask).add({a.q, a.k, a.v, a.o, a.dout, a.dq, a.dk, a.dv}),
                   [&] { return make_plan(a, mask, deterministic, device); });
}

std::int64_t workspace_bytes(const FusedPlan& plan) { return plan.workspace; }

void run(const FusedPlan& plan, const Attention& a, std::byte* workspace, const Stream& stream) {
  execute(plan,
          {{kQ, address(a.q)},
           {kK, address(a.k)},
           {kV, address(a.v)},
           {kO, address(a.o)},
           {kLse, address(a.lse)}},
          workspace, stream);
}

void run(const FusedPlan& plan, const AttentionBackward& a, std::byte* workspace, const Stream& stream) {
  execute(plan,
          {{kQ, address(a.q)},
           {kK, address(a.k)},
           {kV, address(a.v)},
           {kO, address(a.o)},
           {kLse, address(a.lse)},
           {kDout, address(a.dout)},
           {kDq, address(a.dq)},
           {kDk, address(a.dk)},
           {kDv, address(a.dv)}},
          workspace, stream);
}

}  // namespace transmamba::cuda
