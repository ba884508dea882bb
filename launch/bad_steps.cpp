#include "launch/bad_steps.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace transmamba {
namespace {

constexpr std::int64_t kEnough = 10, kRecent = 50;  // steps

/// Of a nan the sign says nothing, and differs between machines.
double unsigned_nan(double x) { return std::isnan(x) ? std::abs(x) : x; }

}  // namespace

double BadSteps::largest_loss() const {
  return config_.spike_guard > 0 && fine_ >= kEnough ? config_.spike_guard * mean_
                                                     : std::numeric_limits<double>::infinity();
}

void BadSteps::add(std::int64_t step, const StepResult& result) {
  step_ = step, last_ = result;
  if (result.skipped) {
    ++in_a_row_, ++skipped_;
    return;
  }
  in_a_row_ = 0, ++fine_, fine_step_ = step, last_fine_ = result;
  mean_ += (result.loss - mean_) / static_cast<double>(std::min(fine_, kRecent));
}

std::string BadSteps::why(const std::string& by_rank) const {
  const bool is_spike = std::isfinite(last_.loss) && std::isfinite(last_.grad_norm);
  std::string text = fmt::format("step {}  skipped, {} in a row: ", step_, in_a_row_);
  text += is_spike ? fmt::format("loss {:.4f} is above {} times {:.4f}, the mean of recent ones", last_.loss,
                                 config_.spike_guard, mean_)
                   : fmt::format("loss {} and gradient norm {} must be finite", unsigned_nan(last_.loss),
                                 unsigned_nan(last_.grad_norm));
  if (!by_rank.empty()) text += fmt::format("; not finite: {}", by_rank);
  return text;
}

std::string BadSteps::last_fine() const {
  return fine_ == 0 ? "no step of this run was fine"
                    : fmt::format("step {} was fine, with loss {:.4f} and gradient norm {:.3f}", fine_step_,
                                  last_fine_.loss, last_fine_.grad_norm);
}

}  // namespace transmamba
