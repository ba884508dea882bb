#include "launch/pace.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace transmamba {

Pace::Pace(Communicator& world)
    : world_(world), mine_(memory_, {1}, DType::f64), all_(memory_, {world.size()}, DType::f64) {}

void Pace::add_step(double seconds) {
  computing_ += seconds;
  for (const auto& [key, traffic] : world_.recorder().table()) computing_ -= traffic.exposed;
}

std::optional<Slowest> Pace::slowest() {
  if (world_.size() == 1) return std::nullopt;
  std::optional<Slowest> found;
  if (std::exchange(is_under_way_, true)) {
    call_.wait();  // many calls of all ranks have come between
    const double *const first = all_.ptr<double>(), *const end = first + world_.size();
    const double* const longest = std::max_element(first, end);
    const double others = std::accumulate(first, end, -*longest) / (world_.size() - 1);
    found = {static_cast<int>(longest - first), others > 0 ? *longest / others - 1 : 0};
  }
  *mine_.ptr<double>() = std::exchange(computing_, 0);
  call_ = world_.start_all_gather("pace", mine_, all_);
  return found;
}

}  // namespace transmamba
