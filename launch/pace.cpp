#include "launch/pace.h"

#include <algorithm>
#include <numeric>

#include "core/tensor.h"

namespace transmamba {

void Pace::add_step(double seconds) {
  computing_ += seconds;
  for (const auto& [key, traffic] : world_.recorder().table()) computing_ -= traffic.exposed;
}

std::optional<Slowest> Pace::slowest() {
  if (world_.size() == 1) return std::nullopt;
  Allocator memory;  // which MPI may still write to where this call fails
  const Tensor mine(memory, {1}, DType::f64), all(memory, {world_.size()}, DType::f64);
  *mine.ptr<double>() = computing_;
  world_.all_gather("pace", mine, all);
  computing_ = 0;
  const double *const first = all.ptr<double>(), *const end = first + world_.size();
  const double* const longest = std::max_element(first, end);
  const double others = std::accumulate(first, end, -*longest) / (world_.size() - 1);
  return Slowest{static_cast<int>(longest - first), others > 0 ? *longest / others - 1 : 0};
}

}  // namespace transmamba
