#include "launch/session.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <map>

#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "launch/binding.h"
#include "parallel/comm/agree.h"

namespace transmamba {
namespace {

DType parse_dtype(const std::string& name) {
  if (name == "bfloat16") return DType::bf16;
  return name == "float64" ? DType::f64 : DType::f32;
}

}  // namespace

void check_own_gpus(const std::vector<std::string>& uuids, const std::string& name) {
  std::map<std::string, std::size_t> rank_of;
  for (std::size_t rank = 0; rank < uuids.size(); ++rank) {
    const auto [first, is_new] = rank_of.emplace(uuids[rank], rank);
    check(is_new, "session",
          "train.device = cuda: expected a GPU for every rank, but ranks {} and {} share one ({}): start as "
          "many "
          "ranks on a host as it has GPUs (CUDA_VISIBLE_DEVICES may hide some); train.device = cpu runs on "
          "any number",
          first->second, rank, name);
  }
}

void check_gpu(const TrainConfig& config, const gpu::Info& gpu) {
  // Before what a build is for: another build would not help.
  check(parse_dtype(config.dtype) != DType::bf16 || gpu.major == 9, "session",
        "train.dtype = bfloat16: expected a GPU of compute capability 9.0 (H100, H200), got {}, of {}.{}; "
        "train.dtype = float32 runs there",
        gpu.name, gpu.major, gpu.minor);
  const bool wants_hopper =
      parse_dtype(config.dtype) == DType::bf16;  // the driver makes no 90a of another's PTX
  check(gpu.has_kernels && (!wants_hopper || gpu.built_for.find("90a") != std::string::npos), "session",
        "{} is of compute capability {}.{}, and this build's kernels are for {}: configure with "
        "-DCMAKE_CUDA_ARCHITECTURES={}",
        gpu.name, gpu.major, gpu.minor, gpu.built_for,
        gpu.major == 9 ? "90a-real" : fmt::format("{}{}", gpu.major, gpu.minor));
}

Session::Session(const TrainConfig& config, int ranks_on_cores) : Session(config, ranks_on_cores, nullptr) {}

Session::Session(const TrainConfig& config, const Process& process)
    : Session(config, process.ranks_on_cores(), &process) {}

/// Its cores are chosen first: what the driver gets of the host's memory then lies there. Gives the number of
/// ranks on these cores.
int Session::take_gpu(const TrainConfig& config, const Process* process, int ranks_on_cores) {
  // Every group and lane of ranks has a stream, and as many queues of the driver as it allows keep one that
  // waits for another rank from holding up others, for which that rank waits. Read when the driver starts.
  // Scripts of other programs that set it to 1 must not make this one hang.
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", /*overwrite=*/1);
  const int count = gpu::count(), local_rank = process ? process->local_rank() : 0,
            local_size = process ? process->local_size() : 1, device = local_rank % count;
  if (config.bind == "auto") {
    Host host{{},         online_cores(), own_cores(), local_size > 1 && ranks_on_cores == local_size,
              local_rank, local_size};
    for (int i = 0; i < count; ++i) host.near.push_back(cores_near(gpu::pci_address(i)));
    const std::optional<Binding> binding = choose_binding(host);
    if (binding && bind_to(binding->cores)) ranks_on_cores = binding->ranks;
  }
  gpu_ = gpu::select(device);
  check_gpu(config, *gpu_);
  place_ = fmt::format("GPU {} of {} at {}, cores {}", device, count, gpu::pci_address(device),
                       format_cores(own_cores()));
  return ranks_on_cores;
}

Session::Session(const TrainConfig& config, int ranks_on_cores, const Process* process) {
  context_.memory = &memory_;
  context_.dtype = parse_dtype(config.dtype);
  if (config.device == "cuda") {
    ranks_on_cores = take_gpu(config, process, ranks_on_cores);
    memory_ = Allocator(gpu::reserve_memory());
    context_.stream = gpu::create_stream();
    host_ = Allocator::pinned(context_.stream);
    context_.host = &host_;
    scratch_ = std::make_unique<ArenaScratch>(memory_);
    context_.stream.scratch = scratch_.get();
    if (process && process->size() > 1) nccl_ = std::make_unique<NcclEngine>(context_.stream, memory_);
    context_.stream.watch = nccl_.get();
  }
  context_.stream.deterministic = config.deterministic;
  const int cores = static_cast<int>(own_cores().size());
  context_.stream.threads =
      config.threads > 0 ? static_cast<int>(config.threads) : std::max(1, cores / ranks_on_cores);
}

Session::~Session() {
  if (gpu_) gpu::destroy_stream(context_.stream);
}

std::unique_ptr<Communicator> Session::world(const Process& process, double timeout_seconds) {
  std::unique_ptr<Communicator> world = process.world(timeout_seconds);
  if (!nccl_ || world->size() == 1) return world;
  check_own_gpus(gather_text(*world, "GPUs", gpu_->uuid), gpu_->name);
  nccl_->set_timeout(timeout_seconds);
  return nccl_communicator(std::move(world), *nccl_);
}

double measure_peak_flops(const Context& context, double seconds) {
  using Clock = std::chrono::steady_clock;
  const bool on_gpu = context.stream.device == Device::cuda;
  const std::int64_t size = on_gpu ? (context.dtype == DType::bf16 ? 8192 : 2048) : 1024;
  Allocator memory;  // its own: these are no part of what a model needs
  if (on_gpu) memory = Allocator(gpu::reserve_memory());
  const auto matrix = [&] { return Tensor(memory, {size, size}, context.dtype); };
  const Tensor a = matrix(), b = matrix(), c = matrix();
  fill({.value = 0.5, .y = a}, context.stream);
  fill({.value = 0.25, .y = b}, context.stream);
  const auto product = [&] {
    gemm({.a = a, .b = b, .c = c}, context.stream);
    synchronize(context);
  };
  product();  // warm up
  double best = 0;
  const auto start = Clock::now();
  while (std::chrono::duration<double>(Clock::now() - start).count() < seconds) {
    const auto begin = Clock::now();
    product();
    const double flops = 2 * std::pow(static_cast<double>(size), 3);
    best = std::max(best, flops / std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return best;
}

std::optional<double> published_peak_flops(const gpu::Info& gpu, DType dtype) {
  const auto named = [&](const char* part) { return gpu.name.find(part) != std::string::npos; };
  const bool sxm = (named("H100") || named("H200")) && !named("PCIe") && !named("NVL") && !named("GH200");
  if (dtype != DType::bf16 || gpu.major != 9 || gpu.minor != 0 || !sxm) return std::nullopt;
  return 989e12;
}

std::int64_t peak_resident_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;  // Linux counts kilobytes
}

}  // namespace transmamba
