// Where all ranks are, once one has waited too long. Its own call says little of why it does not end: another
// rank is in another call, or in none.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/comm/communicator.h"

namespace transmamba {

/// Where a rank is.
struct Place {
  struct Turn {
    std::int64_t step = 0;    ///< 0: none yet
    std::uint64_t group = 0;  ///< of the call: ranks with the same one count the same calls; 0: none
    std::int64_t number = 0;  ///< in that group
  };
  std::string text;  ///< "step 3: all_reduce .. of group tp, number 12"
  Turn turn;         ///< tells who is behind
};

/// A line a rank, those first for whom others may wait: in no call (nothing in `places`), in an earlier step,
/// in an earlier call of a group. With hosts, by rank, where these are several. Not all of many ranks.
std::string who_is_where(const std::vector<std::optional<Place>>& places,
                         const std::vector<std::string>& hosts = {});

/// Asks all ranks of the run where they are. Those in a wait answer; who says nothing computes, hangs or is
/// gone.
class RollCall {
 public:
  virtual ~RollCall() = default;
  virtual std::int64_t new_wait() = 0;
  /// To be called now and then in a wait: answers whoever has asked, and hears answers. `place` says where
  /// this rank is.
  virtual void listen(const std::function<Place()>& place) = 0;
  /// In wait `wait`, which listens for the answers. Asking again does nothing.
  virtual void ask(std::int64_t wait) = 0;
  virtual bool all_have_answered() const = 0;
  /// As the function of this name has it. `mine` is this rank's own.
  virtual std::string who_is_where(const Place& mine) const = 0;
};

/// Before the time is over all ranks are asked where they are, and the run is to have ended by then: seconds
/// of a wait after which it asks, and after which it ends even without all answers.
struct RollCallTimes {
  explicit RollCallTimes(double timeout);
  double asks, ends;
};

/// "step 3: all_reduce .. of group tp, number 12", of the 12th call of that group. Step 0 is none.
std::string place_of(std::int64_t step, const Call& call, std::string_view axis, std::int64_t number);
/// What a rank says whose time is over: `why` it still waits, and who_is_where.
std::string waited_too_long(std::string_view axis, int rank, double seconds, const Call& call, double timeout,
                            const std::string& why, const std::string& who_is_where);

/// What a rank says, once, that is told to end and then stays in a call: the launcher ends the run, mostly
/// since another rank is gone, and soon kills this one too, long before parallel.timeout is over.
class LastWords {
 public:
  /// `rank` is who says it: "rank 1 on h2". `told` may be asked often.
  LastWords(std::string rank, std::function<bool()> told, std::function<void(const std::string&)> say,
            double patience = 0.3)
      : rank_(std::move(rank)), told_(std::move(told)), say_(std::move(say)), patience_(patience) {}
  /// To be called now and then in a call, which has lasted `seconds`.
  void look(double seconds, const std::function<Place()>& place);

 private:
  const std::string rank_;
  const std::function<bool()> told_;
  const std::function<void(const std::string&)> say_;
  const double patience_;  // seconds
  std::optional<std::chrono::steady_clock::time_point> told_at_;
  bool said_ = false;
};

/// A call that the GPU has not ended, or not begun.
struct GpuCall {
  const Call* call = nullptr;
  std::string_view axis;
  std::int64_t number = 0;  ///< in its group; the first is 1
  std::int64_t turn = 0;    ///< among all calls of the rank
};

/// The waits of a rank for its GPU: it answers other ranks meanwhile, and says when one has lasted too long.
class GpuWaits {
 public:
  using UnderWay = std::function<std::vector<GpuCall>()>;  ///< the oldest call of each group, or of some
  /// The ranks' roll call is that of `world`, which is over MPI and may end before this.
  void belong_to(Communicator& world);
  void set_timeout(double seconds) { timeout_ = seconds; }
  /// To be called now and then in a wait, in which for `seconds` no call has come to its end although some
  /// are under way (0: there are none). Where that is too long it gives what to say, otherwise "".
  std::string look(double seconds, const UnderWay& under_way);

 private:
  Place place(const std::vector<GpuCall>& calls) const;
  double timeout_ = 0;
  int rank_ = 0;
  std::weak_ptr<RollCall> roll_call_;
  const Recorder* recorder_ = nullptr;  // knows the step; there as long as the roll call is
  std::chrono::steady_clock::time_point looked_;
  std::int64_t wait_ = 0;  // in which it asks; 0: in none
};

}  // namespace transmamba
