// Faults on purpose, for tests of what follows: the keys of [fault].
#pragma once

#include <filesystem>

#include "core/config.h"

namespace transmamba {

/// On rank `fault.rank`, from step `fault.step` on for `fault.steps` steps:
///   kill          the process gets SIGKILL when the step begins
///   stop          .. SIGSTOP: it stays, and does nothing
///   hang          it never comes out of the step
///   nan           a gradient is not finite
///   slow          the step takes fault.seconds longer
///   disk_full     files cannot grow past 16 KiB while these steps go on
///   flipped_byte  the shard of a checkpoint of such a step has another byte in its middle, once it is saved
class Fault {
 public:
  Fault(FaultConfig config, int rank) : config_(std::move(config)), is_here_(rank == config_.rank) {}
  /// Steps count from 1, as in what a run says.
  void begin_step(std::int64_t step);
  bool spoils(std::int64_t step) const { return is("nan", step); }
  void saved(const std::filesystem::path& shard, std::int64_t step) const;

 private:
  bool is(const char* kind, std::int64_t step) const {
    return is_here_ && config_.kind == kind && step >= config_.step && step < config_.step + config_.steps;
  }
  FaultConfig config_;
  bool is_here_, is_limited_ = false;
};

}  // namespace transmamba
