#include "launch/pace.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace transmamba {

Pace::Pace(Communicator& world, const Stream& compute)
    : world_(world),
      compute_(compute),
      waits_(compute),
      mine_(memory_, {1}, DType::f64),
      all_(memory_, {world.size()}, DType::f64) {
  if (on_gpu() && world.size() > 1) waits_.begin();
}

Pace::~Pace() {
  if (is_set_) world_.recorder().set_profile(others_);
}

void Pace::begin_step(bool is_profiled) {
  if (!on_gpu() || world_.size() == 1 || until_-- > 0) return;
  if (is_profiled) return void(until_ = 0);
  until_ = kGpuSteps - 1;
  is_set_ = true;
  others_ = world_.recorder().profile();
  world_.recorder().set_profile(&waits_);
  waits_.record();
}

void Pace::end_step(double seconds) {
  if (!on_gpu()) {
    double computing = seconds;
    for (const auto& [key, traffic] : world_.recorder().table()) computing -= traffic.exposed;
    computing_ = computing_.value_or(0) + computing;
  } else if (std::exchange(is_set_, false)) {
    world_.recorder().set_profile(others_);
    waits_.pause();
    step_ = seconds;
  } else if (step_) {
    computing_ = std::max(0., *step_ - waits_.take_waits());
    step_.reset();
  }
}

std::optional<Slowest> Pace::slowest() {
  if (world_.size() == 1) return std::nullopt;
  if (std::exchange(is_under_way_, false)) {
    call_.wait();  // many calls of all ranks have come between
    const double *const first = all_.ptr<double>(), *const end = first + world_.size();
    const double* const longest = std::max_element(first, end);
    const double others = std::accumulate(first, end, -*longest) / (world_.size() - 1);
    slowest_ = {static_cast<int>(longest - first), others > 0 ? *longest / others - 1 : 0};
  }
  if (!computing_) return slowest_;
  *mine_.ptr<double>() = *std::exchange(computing_, std::nullopt);
  call_ = world_.start_all_gather("pace", mine_, all_);
  is_under_way_ = true;
  return slowest_;
}

}  // namespace transmamba
