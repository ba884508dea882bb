// What a rank does while it is profiled: regions of its computing and calls to other ranks, with when they
// began and ended.
//
// On the CPU times are the steady clock's. Work of a GPU is timed by events in the order of its streams; they
// are read after the step, where the host has waited for the GPU anyway. NVIDIA's tools see the same names as
// NVTX ranges. Nothing is recorded, and a region costs a branch, but between record() and pause(). One
// thread's.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/tensor.h"
#include "kernels/device.h"

namespace transmamba {

/// A moment: seconds, or until they are known the place of an event.
struct Mark {
  double seconds = 0;
  int event = -1;  ///< in the profile's pool
  int step = 0;    ///< whose first event its seconds are counted from
};

/// What tells regions of one family apart: "layer 12". Without `of` there is nothing to tell.
struct Label {
  const char* of = nullptr;
  std::int64_t number = 0;
};

/// A region, which lies in another one or in none.
struct RegionSpan {
  const char* family = "";  ///< "mixer forward"; a literal, as Label::of is
  Label first, second;
  bool on_host = false;  ///< beside a GPU: work of the host that streams do not wait for
  int parent = -1;       ///< in Profile::regions()
  Mark begin, end;
  double nested = 0;   ///< seconds of regions directly in it
  double exposed = 0;  ///< seconds outside those in which it waited for other ranks
  double seconds() const { return end.seconds - begin.seconds; }
  double own() const { return seconds() - nested - exposed; }  ///< that it computed by itself
};
std::string name_of(const RegionSpan& region);  ///< "layer 12 mixer forward"

class Profile;

/// A call to other ranks. `exposed`: seconds that the rank waited in it; on a GPU those that the compute
/// stream did, from its arrival at the wait to the end of the call.
struct CallSpan {
  std::string axis;
  std::string_view purpose;  ///< a literal
  const char* kind = "";     ///< "all_gather"
  std::string group;         ///< the same on its ranks, and on no others
  int from = -1, to = -1;    ///< of a message: ranks of the group
  std::int64_t bytes = 0;    ///< that this rank sent (parallel/comm/recorder.h)
  std::int64_t size = 0;     ///< of what the call is about (parallel/comm/timed_call.h)
  double bus_factor = 1;     ///< and how much of it links carry
  Mark begin, end;
  double exposed = 0;
  bool is_complete = false;  ///< so that the above is known

  // For an implementation that hands the call to a GPU's stream.
  bool is_on_gpu() const { return on_gpu_; }
  void begins_on(const Stream& stream);
  void begins_in(const Stream& compute);  ///< the compute stream itself, which waits from there to the end
  void ends_on(const Stream& stream);
  void is_awaited_by(const Stream& compute);
  /// By the host's clock; does nothing to a call that a GPU's stream has.
  void ended(double begun, double ended, double waited);

 private:
  friend class Profile;
  Profile* profile_ = nullptr;
  Mark arrival_;
  bool on_gpu_ = false, is_awaited_ = false, is_in_compute_ = false;
  int region_ = -1;  // that waits
};

class Profile {
 public:
  /// `compute`: of a GPU, or the CPU's.
  explicit Profile(const Stream& compute);
  Profile(const Profile&) = delete;
  Profile& operator=(const Profile&) = delete;

  /// Seconds of this host's steady clock.
  static double now();

  /// Before the first step: ties the GPU's clock to the host's. Waits for the device.
  void begin();
  /// What begins from here on is recorded; calls that it starts are, whenever they end.
  void record();
  /// Waits for the device.
  void pause();
  /// Waits for the device; then all times are those of now(). Calls that are still under way are left out.
  void end();
  /// Instead of begin() and end(), where nothing but calls is recorded: seconds that the rank waited in those
  /// that have ended, which are forgotten. Of a GPU whose work up to here is done.
  double take_waits();
  bool records() const { return records_; }

  const std::vector<RegionSpan>& regions() const { return regions_; }
  const std::vector<std::shared_ptr<CallSpan>>& calls() const { return calls_; }

  // What Region and communicators call.
  void open(const char* family, Label first, Label second, bool on_host);
  void close() noexcept;
  /// Null unless it records. For the caller to fill in, and to say when the call is started.
  std::shared_ptr<CallSpan> call(std::string axis, std::string_view purpose, const char* kind);
  void call_is_started();
  /// The host has waited for other ranks for so long. Of a GPU its stream's waits count, not the host's.
  void charge(double seconds);

 private:
  friend struct CallSpan;
  bool on_gpu() const { return compute_.device == Device::cuda; }
  int open_region() const { return open_.empty() ? -1 : open_.back(); }  // the innermost
  Mark mark(const Stream& stream);
  void resolve(Mark& mark);
  void resolve_calls();
  double tie(gpu::Event& event) const;

  Stream compute_;
  bool records_ = false;
  std::vector<RegionSpan> regions_;
  std::vector<int> open_;  // regions, outermost first
  std::size_t resolved_ = 0;
  std::vector<std::shared_ptr<CallSpan>> calls_;  // in the order in which they were started
  std::vector<gpu::Event> events_;
  std::vector<int> free_;             // events
  std::vector<gpu::Event> anchors_;   // at begin()
  std::vector<gpu::Event> steps_;     // the first of each record()
  std::vector<double> step_seconds_;  // of the GPU, since the anchor
  double anchored_ = 0;               // now() at the anchor
};

/// A region from here to its end, in the profile of `context`.
class Region {
 public:
  Region(const Context& context, const char* family, Label first = {}, Label second = {})
      : Region(context, false, family, first, second) {}
  Region(Region&&) = delete;
  ~Region() {
    if (profile_) profile_->close();
  }

 protected:
  Region(const Context& context, bool on_host, const char* family, Label first, Label second)
      : profile_(context.profile && context.profile->records() ? context.profile : nullptr) {
    if (profile_) profile_->open(family, first, second, on_host);
  }

 private:
  Profile* profile_;
};

/// Of what the host does by itself, for which a GPU does not wait.
class HostRegion : public Region {
 public:
  HostRegion(const Context& context, const char* family) : Region(context, true, family, {}, {}) {}
};

}  // namespace transmamba
