// A call under way whose bytes and seconds go to the group's Recorder and, in a step that is profiled, to its
// Profile.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "core/profile.h"
#include "parallel/comm/communicator.h"

namespace transmamba {

/// What a call is about, in bytes, as nccl-tests counts it (its PERFORMANCE.md): all_reduce and broadcast x,
/// all_gather and reduce_scatter all, a message its data. Of an exchange the larger of what goes to other
/// ranks and what comes from them: nccl-tests' all-to-all without what stays.
std::int64_t call_size(const Call& call);
/// By how much more, or less, than that a link between ranks has to carry at least, in each direction.
/// Algorithm bandwidth is size / time, bus bandwidth that times this.
double bus_factor(Call::Kind kind, int ranks);

class TimedCall : public Pending::Work {
 public:
  /// Before the call is started.
  TimedCall(const Communicator& of, std::shared_ptr<Recorder> recorder, const Call& call);
  CallSpan* span() const { return span_.get(); }
  void started(std::unique_ptr<Work> inner);
  void wait() override;
  bool poll() override;

 private:
  using Clock = std::chrono::steady_clock;
  void expose(Clock::duration time);
  std::shared_ptr<Recorder> recorder_;
  std::string axis_;
  std::string_view purpose_;
  std::int64_t bytes_;
  std::shared_ptr<CallSpan> span_;  // of a step that is profiled
  std::unique_ptr<Work> inner_;     // which may use it
  Clock::time_point start_;
  Clock::duration exposed_{};
  std::optional<Clock::time_point> end_;
};

}  // namespace transmamba
