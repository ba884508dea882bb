// What a rank runs with: its device, its cores and its memory.
#pragma once

#include <memory>
#include <optional>

#include "core/config.h"
#include "core/tensor.h"
#include "launch/process.h"
#include "parallel/comm/nccl.h"

namespace transmamba {

/// Everything a rank runs with, made from the configuration: on a GPU one stream, one arena for all tensors
/// and workspaces, and pinned memory for what the host reads and writes. Throws Error where this machine or
/// build lacks what it asks for. Must outlive all tensors.
class Session {
 public:
  /// `ranks_on_cores` ranks share the cores that this process may use (Process knows).
  explicit Session(const TrainConfig& config, int ranks_on_cores = 1);
  /// One of several ranks: those of a host take its GPUs in turn (world() wants one each). On a GPU it first
  /// keeps to the cores near it, as train.bind says.
  Session(const TrainConfig& config, const Process& process);
  ~Session();
  Session(const Session&) = delete;  // the context points into it
  Session& operator=(const Session&) = delete;
  /// All processes, with what carries this device's memory. A collective call. The Session must outlive it.
  /// Throws Error on all ranks where two have the same GPU.
  std::unique_ptr<Communicator> world(const Process& process, double timeout_seconds);
  const Context& context() const { return context_; }
  Allocator& memory() { return memory_; }
  const Allocator& memory() const { return memory_; }
  const std::optional<gpu::Info>& gpu() const { return gpu_; }  ///< as it was at the start
  /// Which of the host's GPUs, and cores: "GPU 3 of 8 at 0000:61:00.0, cores 48-63". Empty on CPUs.
  const std::string& place() const { return place_; }

 private:
  Session(const TrainConfig& config, int ranks_on_cores, const Process* process);
  int take_gpu(const TrainConfig& config, const Process* process, int ranks_on_cores);
  std::optional<gpu::Info> gpu_;
  std::string place_;
  Allocator memory_, host_;
  std::unique_ptr<ArenaScratch> scratch_;  // of kernels on the GPU's stream, from memory_
  std::unique_ptr<NcclEngine> nccl_;       // of several ranks on GPUs
  Context context_;
};

/// Throws Error where `gpu` is too old for train.dtype, or another one than this build's kernels are for.
void check_gpu(const TrainConfig& config, const gpu::Info& gpu);

/// Throws Error where two ranks have the same GPU: uuids by rank. `name` is one's, for the message.
void check_own_gpus(const std::vector<std::string>& uuids, const std::string& name);

/// Peak rate of this rank's cores or GPU in FLOP/s, measured by matrix products in the session's type for
/// `seconds`.
double measure_peak_flops(const Context& context, double seconds = 0.3);

/// The dense peak of a GPU's matrix units in bfloat16, FLOP/s, against which MFU is counted: of H100 and H200
/// SXM; nothing for others and for other types.
std::optional<double> published_peak_flops(const gpu::Info& gpu, DType dtype);

/// Largest resident memory this process has had, in bytes.
std::int64_t peak_resident_bytes();

}  // namespace transmamba
