#include "parallel/comm/roll_call.h"

#include <fmt/format.h>

#include <algorithm>

namespace transmamba {
namespace {

using Clock = std::chrono::steady_clock;
/// As MPI is asked for what has come, which takes a microsecond or a few.
constexpr std::chrono::milliseconds kBetweenLooks{10};
constexpr std::size_t kMostCalls = 3;  // that a rank's line names

/// The one that was made first stands before the others: it is what the GPU waits in, as far as one can tell.
std::vector<GpuCall> in_turn(std::vector<GpuCall> calls) {
  std::sort(calls.begin(), calls.end(), [](const GpuCall& a, const GpuCall& b) { return a.turn < b.turn; });
  return calls;
}

}  // namespace

RollCallTimes::RollCallTimes(double timeout)
    : asks(timeout - std::min(timeout / 2, 5.0)), ends(timeout - std::min(timeout / 3, 3.0)) {}

std::string place_of(std::int64_t step, const Call& call, std::string_view axis, std::int64_t number) {
  return fmt::format("{}{} of group {}, number {}", step > 0 ? fmt::format("step {}: ", step) : "",
                     to_string(call), axis, number);
}

std::string waited_too_long(std::string_view axis, int rank, double seconds, const Call& call, double timeout,
                            const std::string& why, const std::string& who_is_where) {
  return fmt::format("[{}] rank {} has waited {:.3g} s in {}, and parallel.timeout is {}; {}{}", axis, rank,
                     seconds, to_string(call), timeout, why, who_is_where);
}

void GpuWaits::belong_to(Communicator& world) {
  rank_ = world.rank(), roll_call_ = world.roll_call(), recorder_ = &world.recorder();
}

std::string GpuWaits::look(double seconds, const UnderWay& under_way) {
  const auto now = Clock::now();
  if (now - looked_ < kBetweenLooks) return "";
  looked_ = now;
  const std::shared_ptr<RollCall> roll_call = roll_call_.lock();
  if (!roll_call) return "";  // not yet, or no longer, one of several ranks
  roll_call->listen([&] { return place(in_turn(under_way())); });
  const RollCallTimes times(timeout_);
  if (seconds < times.asks) {
    wait_ = 0;
    return "";
  }
  if (wait_ == 0) wait_ = roll_call->new_wait();
  roll_call->ask(wait_);
  if (seconds < times.ends && !roll_call->all_have_answered()) return "";
  const std::vector<GpuCall> calls = in_turn(under_way());
  if (calls.empty()) return "";
  return waited_too_long(calls[0].axis, rank_, seconds, *calls[0].call, timeout_, "its GPU has not ended it",
                         roll_call->who_is_where(place(calls)));
}

std::string GpuWaits::place(const std::vector<GpuCall>& calls) const {
  const std::int64_t step = recorder_->step();
  if (calls.empty())
    return fmt::format("{}a wait for its GPU, which has no call to make",
                       step > 0 ? fmt::format("step {}: ", step) : "");
  std::string text;
  for (std::size_t i = 0; i < std::min(calls.size(), kMostCalls); ++i)
    text += fmt::format("{}{}{}",
                        i == 0   ? ""
                        : i == 1 ? ", before "
                                 : ", ",
                        place_of(i == 0 ? step : 0, *calls[i].call, calls[i].axis, calls[i].number),
                        i == 0 ? " on its GPU" : "");
  return text;
}

}  // namespace transmamba
