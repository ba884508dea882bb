// Ranks as processes with a GPU each, under NCCL.
//
// A group is one of MPI and one of NCCL, of the same ranks. Calls on GPU memory go through NCCL, or where
// they ask for it by copy engines between the GPUs of a host (peer_window.h); host memory, barriers and the
// choices of split() go through MPI. An exchange is of GPU memory only, for a rank with nothing to say in it
// could not tell.
//
// Order: a call begins after all that was enqueued on the compute stream before start_x(), and what is
// enqueued there after wait(), or after the Pending is gone, begins after the call. The host waits for
// neither, so memory that is freed after wait() may be handed out again in the order of the compute stream.
// A call that waits at once (all_reduce(), not start_all_reduce()) is made in the compute stream itself;
// others have a stream beside it. A call begins after all earlier ones of its group on either.
//
// Beyond what communicator.h says: bf16 is taken; sums have the order that NCCL chooses, the same in every
// run on the same machine (by copy engines: a rank's own part, then the others' by rank); a maximum of a NaN
// and a number may be either; ranks' calls on GPU memory are not compared with each other; the recorder's
// seconds are those of the host, which only enqueues: those of the GPU are in a Profile (core/profile.h).
#pragma once

#include <memory>

#include "core/allocator.h"
#include "parallel/comm/communicator.h"

namespace transmamba {

/// What all NCCL groups of a process share. As Stream::watch of the compute stream it throws LostRank while
/// the host waits: where NCCL reports an error, and before `timeout_seconds` are over in which no call has
/// come to its end although some are under way; it says where each rank is, and answers ranks that ask for
/// that (roll_call.h). Must outlive the communicators.
class NcclEngine : public Watch {
 public:
  /// `memory`: what most calls are about.
  NcclEngine(const Stream& compute, const Allocator& memory, double timeout_seconds = 600);
  ~NcclEngine() override;
  void set_timeout(double seconds);
  void look(double seconds) override;

  struct State;
  const std::shared_ptr<State>& state() const { return state_; }

 private:
  std::shared_ptr<State> state_;
};

/// The ranks of `host`, which is over MPI and has more than one. A collective call; each rank has selected
/// its own GPU. Destroyed while an exception passes, the first group aborts all calls of the process on GPU
/// memory: the other ranks may never make their side of them.
std::unique_ptr<Communicator> nccl_communicator(std::unique_ptr<Communicator> host, NcclEngine& engine);

}  // namespace transmamba
