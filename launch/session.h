// What a rank runs with: its device, its cores and its memory.
#pragma once

#include "core/config.h"
#include "core/tensor.h"

namespace transmamba {

/// Everything a rank runs with, made from the configuration. Throws Error where this machine or build lacks
/// what it asks for.
class Session {
 public:
  /// `ranks_on_cores` ranks share the cores that this process may use (Process knows).
  explicit Session(const TrainConfig& config, int ranks_on_cores = 1);
  Session(const Session&) = delete;  // the context points into it
  Session& operator=(const Session&) = delete;
  const Context& context() const { return context_; }
  Allocator& memory() { return memory_; }
  const Allocator& memory() const { return memory_; }

 private:
  Allocator memory_;
  Context context_;
};

/// Peak rate of this rank's cores or GPU in FLOP/s, measured by matrix products in the session's type for
/// `seconds`.
double measure_peak_flops(const Context& context, double seconds = 0.3);

/// Largest resident memory this process has had, in bytes.
std::int64_t peak_resident_bytes();

}  // namespace transmamba
