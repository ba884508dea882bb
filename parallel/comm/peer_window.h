// Memory of a group's GPUs that its ranks copy into each other's: the k-th message from one rank to another
// on a channel waits until the receiver has asked for it, and the receiver for the message, by two words of
// GPU memory and with no host in between. A receiver asks as early as it knows the place. Only for nccl*.cpp.
//
//   receiver, in its stream        sender, in its stream
//   ready[to] at the sender = k    waits for ready[to] = k
//                                  copies into the receiver's window (copy engine)
//   waits for done[from] = k       done[from] at the receiver = k
//
// A sum is such a message from every rank to every other, of the part that the other one wants, which adds
// them: its own part first, then the others' in the order of ranks.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "core/allocator.h"
#include "kernels/shared_memory.h"
#include "parallel/comm/communicator.h"

namespace transmamba {

class PeerWindow {
 public:
  /// A collective call on `host`, the same ranks over host memory. Null, on all ranks, where they are not all
  /// on one host, one's GPU cannot reach another's or has no memory left. Calls of one channel are enqueued
  /// in one order.
  static std::unique_ptr<PeerWindow> open(Communicator& host, std::int64_t bytes, int channels = 1);
  ~PeerWindow();  ///< waits for the other ranks'
  PeerWindow(const PeerWindow&) = delete;
  PeerWindow& operator=(const PeerWindow&) = delete;

  Allocator& memory() { return memory_; }
  /// Whether what an exchange receives, and what it sends at its peers, is in the window.
  bool takes(const Call& call) const;
  /// Asks for what exchanges to come receive, in their order, which they check.
  void expect(std::span<const Incoming> incoming, const Stream& stream);
  void exchange(const Call& call, const Stream& stream);
  /// A send or receive, whose receiver has bytes [slot, slot + the message's) of the window for it meanwhile.
  void pass(const Call& call, int channel, std::int64_t slot, const Stream& stream);
  /// Before the first sum: the driver loads a kernel when it is first enqueued, for which it may wait for all
  /// that the GPU has, and so for other ranks.
  void load_sum(const Stream& stream);
  /// Whether it is a reduce_scatter of float32 that takes few pieces.
  bool adds(const Call& call) const;
  /// With all of the window, which then has no other use, for what the others send of it.
  void reduce_scatter(const Call& call, const Stream& stream);
  /// Ends all waits: for a rank that gives up.
  void release() noexcept;

 private:
  struct Peer {
    std::unique_ptr<gpu::SharedMemory> memory;  // opened
    struct Count {
      std::uint32_t sent = 0, asked = 0, received = 0;  // messages
    };
    std::vector<Count> counts;              // by channel
    std::deque<const std::byte*> expected;  // places of messages that were asked for before their exchange
  };
  PeerWindow(Communicator& host, std::int64_t bytes, int channels, std::unique_ptr<gpu::SharedMemory> own);
  bool has(const ConstView& x) const;
  std::int64_t part() const;  // of the window, for each other rank: bytes
  Peer& peer(int rank) { return peers_[static_cast<std::size_t>(rank)]; }
  /// Words of the rank whose memory is `at` for messages to or from `rank`.
  std::uint32_t* ready(const gpu::SharedMemory& at, int rank, int channel) const;
  std::uint32_t* done(const gpu::SharedMemory& at, int rank, int channel) const;
  void ask(int from, int channel, const Stream& stream);
  void put(int to, int channel, std::int64_t offset, const ConstView& data, const Stream& stream);
  void await(int from, int channel, const Stream& stream);

  Communicator& host_;
  std::int64_t bytes_;
  int channels_;
  std::unique_ptr<gpu::SharedMemory> own_;
  std::vector<Peer> peers_;  // by rank
  Allocator memory_;
};

}  // namespace transmamba
