// NCCL's communicators, and what those of a process share. Only for nccl*.cpp.
#pragma once

#include <cuda_runtime.h>
#include <nccl.h>

#include <chrono>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/profile.h"
#include "kernels/device.h"
#include "parallel/comm/nccl.h"
#include "parallel/comm/roll_call.h"

namespace transmamba {

class NcclQueue;
class PeerWindow;

struct NcclEngine::State {
  Stream compute;
  Allocator memory;
  Watch* watch = nullptr;
  GpuWaits waits;
  std::int64_t calls = 0;            // that were made, of all groups
  std::optional<std::string> error;  // the first: after it nothing can be relied on
  std::vector<NcclQueue*> queues;
  std::vector<std::weak_ptr<PeerWindow>> windows;
  std::vector<gpu::Event> events;  // to be used again
  double looked = std::numeric_limits<double>::infinity();
  std::chrono::steady_clock::time_point moved;  // a wait began, or a call came to its end

  [[noreturn]] void break_with(const std::string& text);  // LostRank
  void must_be_whole() const;                             // or the first error again
  void must(ncclResult_t result, std::string_view axis, const std::string& what);
  gpu::Event take_event();
  void abort();
};

/// A call that may be under way on the GPU.
struct NcclFlight {
  NcclFlight(std::shared_ptr<NcclEngine::State> of, const Call& made);
  ~NcclFlight();
  NcclFlight(const NcclFlight&) = delete;
  NcclFlight& operator=(const NcclFlight&) = delete;
  void order();  ///< what the compute stream gets from now on begins after it
  const std::shared_ptr<NcclEngine::State> engine;
  Call call;
  CallSpan* const span;     // of a step that is profiled; lives as long as whoever waits for the call
  gpu::Event event;         // after it
  std::int64_t number = 0;  // in its group; the first is 1
  const std::int64_t turn;  // among all calls of the process
  bool ordered = false;     // before what the compute stream gets now
};

/// Calls that the GPU makes one after the other, in the order in which they were enqueued, in a stream of its
/// own beside the compute stream: those of an NCCL communicator, or of none but others' (Enqueue).
class NcclQueue {
 public:
  /// `peers`: how many ranks a call may have messages for.
  NcclQueue(std::shared_ptr<NcclEngine::State> engine, std::string axis, ncclComm_t comm, int peers = 1);
  ~NcclQueue();
  NcclQueue(const NcclQueue&) = delete;
  NcclQueue& operator=(const NcclQueue&) = delete;

  using Enqueue = std::function<void(const Stream& stream)>;
  std::unique_ptr<Pending::Work> run(const Call& call) {
    return run(call, [&](const Stream& stream) { make(call, stream); });
  }
  std::unique_ptr<Pending::Work> run(const Call& call, const Enqueue& enqueue);
  /// What waits for no other rank, in the order of calls, beside the compute stream as they.
  void prepare(const Enqueue& enqueue);
  /// A call of the group in which this rank has no part: its number is taken.
  void skip() { ++calls_; }
  /// The first message of a pair, for which the hosts wait for each other: not in the midst of a schedule,
  /// which knows nothing of that.
  void connect(bool sends);
  /// NCCL's own call, and no more than that.
  void make(const Call& call, const Stream& stream) const;

  ncclComm_t comm() const { return comm_; }
  const std::string& axis() const { return axis_; }
  const NcclFlight* oldest() const { return flights_.empty() ? nullptr : flights_.front().get(); }
  bool trim();                       ///< forgets calls that are over; true where there were any
  ncclResult_t async_error() const;  ///< of NCCL's own threads, of a network say
  ncclComm_t give_up();

 private:
  void wait_for_room();
  const std::shared_ptr<NcclEngine::State> engine_;
  const std::string axis_;
  ncclComm_t comm_;
  const std::size_t most_flights_;
  Stream stream_;
  std::int64_t calls_ = 0;  // that were made
  std::deque<std::shared_ptr<NcclFlight>> flights_;
  std::shared_ptr<NcclFlight> beside_;  // the last call on stream_, where the next may be another's
};

}  // namespace transmamba
