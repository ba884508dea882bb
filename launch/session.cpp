#include "launch/session.h"

#include <sched.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>

#include "kernels/elementwise.h"
#include "kernels/gemm.h"

namespace transmamba {
namespace {

int available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

DType parse_dtype(const std::string& name) { return name == "float64" ? DType::f64 : DType::f32; }

}  // namespace

Session::Session(const TrainConfig& config, int ranks_on_cores) {
  check(config.device == "cpu", "session",
        "train.device = {}: this version trains on the CPU; its CUDA kernels work, but no model's tensors "
        "are put on a GPU "
        "yet; allowed now: cpu",
        config.device);
  context_.stream.device = Device::cpu;
  context_.stream.threads =
      config.threads > 0 ? static_cast<int>(config.threads) : std::max(1, available_cores() / ranks_on_cores);
  context_.dtype = parse_dtype(config.dtype);
  context_.memory = &memory_;
}

double measure_peak_flops(const Context& context, double seconds) {
  using Clock = std::chrono::steady_clock;
  constexpr std::int64_t kSize = 1024;
  Allocator memory;  // its own: these are no part of what a model needs
  const auto matrix = [&] { return Tensor(memory, {kSize, kSize}, context.dtype); };
  const Tensor a = matrix(), b = matrix(), c = matrix();
  fill({.value = 0.5, .y = a}, context.stream);
  fill({.value = 0.25, .y = b}, context.stream);
  const auto product = [&] { gemm({.a = a, .b = b, .c = c}, context.stream); };
  product();  // warm up
  double best = 0;
  const auto start = Clock::now();
  while (std::chrono::duration<double>(Clock::now() - start).count() < seconds) {
    const auto begin = Clock::now();
    product();
    best = std::max(
        best, 2.0 * kSize * kSize * kSize / std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return best;
}

std::int64_t peak_resident_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;  // Linux counts kilobytes
}

}  // namespace transmamba
