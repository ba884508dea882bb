// How ranks talk: one interface, whatever carries the bytes.
//
//   parallel/comm/communicator.{h,cpp}  the interface; a group of one rank needs no more than it
//   parallel/comm/threads.{h,cpp}       the threads of one process as ranks, for tests
//   parallel/comm/mpi.{h,cpp}           MPI
//   parallel/comm/nccl.{h,cpp}          NCCL, for the GPU's memory, beside MPI for the host's
//   parallel/comm/peer_window.{h,cpp}   copy engines between the GPUs of a host, for nccl
//   parallel/comm/roll_call.{h,cpp}     where all ranks are when one has waited too long
//   parallel/comm/recorder.{h,cpp}      counts of calls, bytes and seconds, by axis and purpose
//   parallel/comm/timed_call.{h,cpp}    who tells it, and where a run is profiled core/profile.h
//
// All ranks of a group make the same collective calls in the same order. Where they do not, every rank of the
// group throws an Error that names both calls and where they stand in the source.
//
// Buffers are contiguous views of f32, f64 or i32 (sums of i32 wrap; max works for all three), in host
// memory; over NCCL also of the GPU's memory, and of bf16 (nccl.h). A group of one rank touches a buffer only
// where a call asks for a copy to another place, so that it takes a GPU's memory and bf16 too where parts are
// their own part of the whole. Buffers belong to a call from start_x() until wait() returns. Where an
// exception passes a call under way, MPI may read and write them until the process ends: memory of an
// Allocator then stays mapped, other memory of more than 2048 bytes has to be kept by its owner. Reductions
// have a fixed order: the same call on the same numbers gives the same bits, on every rank and in every run.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/check.h"
#include "kernels/types.h"
#include "parallel/comm/recorder.h"

namespace transmamba {

class Allocator;
class RollCall;
struct CallSpan;

enum class Reduce : std::uint8_t { sum, max };

/// Where a call stands in the source. As std::source_location, which clang 14 does not have.
struct Site {
  const char* file = "";
  int line = 0;
  static constexpr Site current(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

/// Ranks that no longer answer, or that the network no longer reaches: the same run may well succeed.
class LostRank : public Error {
 public:
  using Error::Error;
};

/// A view that goes to, or comes from, another rank of the group.
struct Outgoing {
  int peer = 0;
  ConstView data;
  /// In a window (open_window): the place at the peer that the data gets, as this rank's own window has it.
  View there = {};
};
struct Incoming {
  int peer = 0;
  View data;
};

/// A way for messages of GPU memory: those for `purpose`, from every rank to the one `step` after it.
struct Lane {
  std::string_view purpose;  ///< a literal
  int step = 1;              ///< the last rank's next is the first
  /// Of the largest message, where copy engines may carry them (as those of open_window); 0: they may not.
  std::int64_t bytes = 0;
};

/// Bytes that a block of `bytes` takes of a window (Communicator::open_window).
constexpr std::int64_t window_room(std::int64_t bytes) { return (bytes + 255) / 256 * 256; }

/// One call as an implementation sees it. `purpose` is a name for tables and messages and must be a literal.
struct Call {
  enum class Kind : std::uint8_t {
    all_reduce,
    all_gather,
    reduce_scatter,
    broadcast,
    exchange,
    send,
    receive,
    barrier
  };
  Kind kind = Kind::barrier;
  std::string_view purpose;
  ConstView in = {};
  View out = {};
  Reduce reduce = Reduce::sum;
  int peer = 0;                             ///< the root of a broadcast; the other side of send and receive
  int tag = 0;                              ///< of send and receive
  std::span<const Outgoing> outgoing = {};  ///< of exchange; only valid during start()
  std::span<const Incoming> incoming = {};
  Site where = {};
  bool blocking = false;     ///< whoever makes it waits for its end at once
  CallSpan* span = nullptr;  ///< where a run is profiled: for an implementation that hands the call to a GPU
};
const char* to_string(Call::Kind kind);
/// "all_gather of 128 bytes (32 float32) for tokens at parallel/layers/x.cpp:12"
std::string to_string(const Call& call);

/// A call under way. Waiting twice does nothing the second time. The destructor waits too, unless an
/// exception is passing; it swallows what the wait throws, which the group's next call throws again.
class Pending {
 public:
  class Work {  ///< what an implementation makes of a call; destroyed without wait() it is given up
   public:
    virtual ~Work() = default;
    virtual void wait() = 0;
    virtual bool poll() { return false; }  ///< as Pending::poll()
  };
  Pending() = default;
  Pending(std::unique_ptr<Work> work);  // NOLINT: a started call is pending
  Pending(Pending&&) noexcept = default;
  Pending& operator=(Pending&& other) noexcept;
  ~Pending();
  void wait();
  /// Lets this and other calls of the rank move on without waiting, as MPI does only when it is called; cheap
  /// enough for every layer. True once the call is seen to be complete, so that wait() returns at once; false
  /// says nothing (over threads calls need no push, and it is always false). Throws as wait() does.
  bool poll();

 private:
  void finish() noexcept;
  std::unique_ptr<Work> work_;
  int exceptions_ = 0;  ///< that were passing when the call was started
};

/// Calls as the library below makes them, with nothing of ours around them: what ours are measured against.
class BareCalls {
 public:
  virtual ~BareCalls() = default;
  /// A collective call, or an exchange of messages of any sizes, not checked. On a GPU in the order of the
  /// compute stream, elsewhere over on return.
  virtual void make(const Call& call) = 0;
};

class Communicator {
 public:
  using Site = transmamba::Site;
  virtual ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  const std::string& axis() const { return axis_; }    ///< its name: "tp", "world", ..
  const std::string& group() const { return group_; }  ///< the same on its ranks, and on no others
  Recorder& recorder() const { return *recorder_; }

  // Every call has a form that returns at once and a form that waits.

  /// x = reduction over the ranks of x.
  [[nodiscard]] Pending start_all_reduce(std::string_view purpose, View x, Reduce reduce = Reduce::sum,
                                         Site where = Site::current());
  /// all = the `mine` of rank 0, 1, ..; all.numel() = size() mine.numel(). `mine` may be its own part of
  /// `all`.
  [[nodiscard]] Pending start_all_gather(std::string_view purpose, ConstView mine, View all,
                                         Site where = Site::current());
  /// mine = part rank() of the sum over the ranks of `all`; the conjugate of all_gather. `mine` may be its
  /// own part of `all`; the rest of `all` is left undefined.
  [[nodiscard]] Pending start_reduce_scatter(std::string_view purpose, View all, View mine,
                                             Site where = Site::current());
  [[nodiscard]] Pending start_broadcast(std::string_view purpose, View x, int root,
                                        Site where = Site::current());
  /// Sends and receives at most one message a peer (itself included: a copy); both sides know the sizes, and
  /// empty messages may be left out. A collective call: every rank of the group makes it, also with nothing
  /// to say.
  [[nodiscard]] Pending start_exchange(std::string_view purpose, std::span<const Outgoing> outgoing,
                                       std::span<const Incoming> incoming, Site where = Site::current());
  /// Between two ranks, or of a rank to itself; a message meets the receive of its tag (0 <= tag < kMaxTag),
  /// in order. Sends complete without a receive having been started.
  [[nodiscard]] Pending start_send(std::string_view purpose, ConstView data, int peer, int tag,
                                   Site where = Site::current());
  [[nodiscard]] Pending start_receive(std::string_view purpose, View data, int peer, int tag,
                                      Site where = Site::current());

  void all_reduce(std::string_view purpose, View x, Reduce reduce = Reduce::sum,
                  Site where = Site::current());
  void all_gather(std::string_view purpose, ConstView mine, View all, Site where = Site::current());
  void reduce_scatter(std::string_view purpose, View all, View mine, Site where = Site::current());
  void broadcast(std::string_view purpose, View x, int root, Site where = Site::current());
  void exchange(std::string_view purpose, std::span<const Outgoing> outgoing,
                std::span<const Incoming> incoming, Site where = Site::current());
  void send(std::string_view purpose, ConstView data, int peer, int tag, Site where = Site::current());
  void receive(std::string_view purpose, View data, int peer, int tag, Site where = Site::current());
  void barrier(std::string_view purpose, Site where = Site::current());

  /// A collective call, before messages of GPU memory: opens their lanes. Messages of a lane between two
  /// ranks have to be received in the order in which they are sent, whatever their tags, and a send is
  /// complete only once its receive is; lanes and directions do not wait for each other. Messages of host
  /// memory need none.
  void open_lanes(std::span<const Lane> lanes);

  /// A collective call, once: a window of `bytes` of GPU memory that ranks copy into each other's by copy
  /// engines, which leave the multiprocessors to computing, where all are on one host and their GPUs reach
  /// each other; elsewhere nothing. An exchange goes that way if all that it receives is in window() memory,
  /// and all that it sends says where `there` is: every rank takes the same blocks in the same order, so that
  /// their places are the same.
  void open_window(std::int64_t bytes);
  /// A collective call: reduce_scatter of f32 in GPU memory goes by copy engines too, through `bytes` of each
  /// GPU and in a few pieces if need be, where windows can be opened: NCCL's keeps multiprocessors from
  /// computing also while one rank waits for another. Whether it does now.
  bool open_sums(std::int64_t bytes = kSumBytes);
  /// What the window's memory comes from; null without one.
  virtual Allocator* window() { return nullptr; }
  /// What exchanges to come will receive in the window, in their order: whoever sends it may do so before
  /// this rank makes its call, which then waits for no round trip. None of them is left out, and no other one
  /// is made before. Does nothing without a window.
  virtual void expect(std::span<const Incoming> incoming) { static_cast<void>(incoming); }

  /// A collective call: the library's own calls among the same ranks, on a communicator of their own. Null
  /// where there is no library: over threads, and of one rank.
  virtual std::unique_ptr<BareCalls> bare();

  /// How this rank asks where all ranks of the run are (roll_call.h). Null where ranks are no processes.
  virtual std::shared_ptr<RollCall> roll_call() { return nullptr; }

  /// A collective call: ranks of equal `color` >= 0 become a group named `axis`, in the order of `order`.
  std::unique_ptr<Communicator> split(std::string axis, int color, int order, Site where = Site::current());

  static constexpr std::int64_t kSumBytes = std::int64_t{64} << 20;
  static constexpr int kMaxTag = 1 << 19;  ///< as many as the MPI libraries of today allow

 protected:
  // What an implementation on top of another one calls of it.
  static std::unique_ptr<Pending::Work> start_on(Communicator& other, const Call& call) {
    return other.start(call);
  }
  static std::unique_ptr<Communicator> split_of(Communicator& other, std::string axis,
                                                const std::vector<int>& members, int split) {
    return other.make_split(std::move(axis), members, split);
  }
  static std::shared_ptr<Recorder> recorder_of(const Communicator& other) { return other.recorder_; }

  Communicator(std::string axis, int rank, int size, std::shared_ptr<Recorder> recorder);
  /// Called with size() > 1 and checked arguments only. An exchange is without empty messages and those to
  /// itself, and a message's peer is another rank. May return null for a call that is complete.
  virtual std::unique_ptr<Pending::Work> start(const Call& call) = 0;
  /// The group of `members`, ranks of this group in their new order; more than one, with this rank among
  /// them. They all call this at the same time, and no others; `split` counts the splits of this group.
  virtual std::unique_ptr<Communicator> make_split(std::string axis, const std::vector<int>& members,
                                                   int split) = 0;
  /// Called with size() > 1.
  virtual void make_lanes(std::span<const Lane> lanes);
  virtual void make_window(std::int64_t bytes);
  virtual bool make_sums(std::int64_t bytes);
  virtual bool takes_bf16() const { return false; }
  /// What an exchange sends to its own rank.
  virtual void copy_own(std::byte* to, const std::byte* from, std::size_t bytes);
  std::shared_ptr<Recorder> recorder_;

 private:
  struct OwnMessages;
  Pending begin(const Call& call);
  Pending begin_timed(Call call);
  void run(Call call);
  Pending begin_exchange(Call call);
  Pending begin_own_message(const Call& call);
  std::string axis_, group_;
  int rank_, size_, splits_ = 0;
  std::shared_ptr<OwnMessages> own_messages_;  ///< to itself
};

/// A group of this rank alone: every call is a copy or nothing.
std::unique_ptr<Communicator> self_communicator(std::string axis = "world",
                                                std::shared_ptr<Recorder> recorder = nullptr);

}  // namespace transmamba
