// Which rank is the slowest.
#pragma once

#include <optional>

#include "core/profile.h"
#include "core/tensor.h"
#include "parallel/comm/communicator.h"

namespace transmamba {

struct Slowest {
  int rank = 0;
  double excess = 0;  ///< how much more time it computes than the others in the mean: 0.5 for half more
};

/// What ranks compute between their waits for each other: in step time all are as slow as the slowest. Of CPU
/// ranks in every step. On GPUs it is the compute stream that waits, and events around its calls tell how
/// long, which costs one to three percent of a step: they are set in one step of kGpuSteps.
class Pace {
 public:
  static constexpr int kGpuSteps = 20;
  /// On `compute` a rank of `world` computes. Must outlive all calls of the steps.
  Pace(Communicator& world, const Stream& compute);
  ~Pace();
  Pace(const Pace&) = delete;
  Pace& operator=(const Pace&) = delete;

  /// Around each step. `is_profiled`: somebody else's events are set in it.
  void begin_step(bool is_profiled);
  /// It took so many seconds; before the recorder is reset.
  void end_step(double seconds);
  /// A collective call that does not wait: it sends off what is new since the last one, and gives what was
  /// sent before, again where nothing was. Nothing of one rank, and at first.
  std::optional<Slowest> slowest();

 private:
  bool on_gpu() const { return compute_.device == Device::cuda; }
  Communicator& world_;
  const Stream compute_;
  Profile waits_;                    // of GPUs, for calls alone
  Profile* others_ = nullptr;        // in whose place it is
  int until_ = 1;                    // steps before the next with events; not the first, which is slow
  bool is_set_ = false;              // in this step
  std::optional<double> step_;       // that had them; some of its calls end in the next
  std::optional<double> computing_;  // what is new, on all ranks or on none
  std::optional<Slowest> slowest_;
  bool is_under_way_ = false;
  Allocator memory_;
  Tensor mine_, all_;
  Pending call_;
};

}  // namespace transmamba
