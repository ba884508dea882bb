// One call between ranks at one size: whether its result is right, and how long it takes beside the library's
// own. `bench comm` goes through all sizes, `bench --quick` through a few.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "parallel/comm/communicator.h"

namespace transmamba {

/// What is measured. `send`: every rank sends to the next of the ring while the one before sends to it, as in
/// a pipeline. An `exchange` has a part for every other rank; what a rank keeps is not moved.
inline constexpr Call::Kind kMeasuredKinds[] = {Call::Kind::all_reduce,     Call::Kind::all_gather,
                                                Call::Kind::reduce_scatter, Call::Kind::broadcast,
                                                Call::Kind::exchange,       Call::Kind::send};

/// Rounds of a ring among `ranks`, of which each has a latency (core/machine.h).
double ring_steps(Call::Kind kind, int ranks);
/// Bytes through the busiest link over the bytes of the whole buffer, so that bus bandwidth, which the
/// hardware bounds whatever the number of ranks, is this times bytes / seconds. As doc/PERFORMANCE.md of
/// nccl-tests has it; save for broadcast also the bytes that a rank sends (recorder.h). Of an exchange the
/// buffer has what stays too, unlike the size of a call in a profile (parallel/comm/timed_call.h).
double buffer_factor(Call::Kind kind, int ranks);

struct CallTime {
  Call::Kind kind = Call::Kind::all_reduce;
  int ranks = 0;
  std::int64_t bytes = 0;  ///< of the whole buffer: what a rank has before or after the call, the larger
  double seconds = 0;
  std::optional<double> bare = {};  ///< seconds of the library's own call, where there is one

  double algorithm_rate() const { return static_cast<double>(bytes) / seconds; }  ///< bytes a second
  double bus_rate() const { return buffer_factor(kind, ranks) * algorithm_rate(); }
  double bare_bus_rate() const { return bus_rate() * seconds / *bare; }
};

class CallBench {
 public:
  /// Calls of `group` on `x` and `y`, of one size, context's type and 1-D. `everyone`: the ranks that measure
  /// at the same time, each in a group of its own; the slowest counts. Messages go by copy engines
  /// where `by_copies` and these can (open_lanes), as in training, which takes as much memory again. A
  /// collective call of all of them.
  CallBench(const Context& context, Communicator& group, Communicator& everyone, const Tensor& x,
            const Tensor& y, bool by_copies);
  /// The next size from `bytes` on that can be shared out among the ranks.
  std::int64_t fitting(std::int64_t bytes) const;
  // Collective calls of everyone, with a size that fits.
  /// Makes the call once, on integers. Throws Error on everyone with the first element that is wrong.
  void verify(Call::Kind kind, std::int64_t bytes) const;
  /// Takes about `seconds`; twice that beside the library's own calls, in turns. On a GPU many calls follow
  /// each other without waits of the host.
  CallTime time(Call::Kind kind, std::int64_t bytes, double seconds, bool beside_bare) const;

 private:
  struct Prepared;
  Prepared prepare(Call::Kind kind, std::int64_t bytes) const;
  void make(const Prepared& prepared) const;
  void write(const View& to, std::int64_t seed) const;
  void expect(const View& got, const std::vector<std::int64_t>& seeds, const std::string& what) const;
  Tensor pattern(std::int64_t length, const std::vector<std::int64_t>& seeds) const;

  const Context& context_;
  Communicator &group_, &everyone_;
  const Tensor x_, y_;
  const std::unique_ptr<BareCalls> bare_;
};

}  // namespace transmamba
