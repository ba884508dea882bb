#include "parallel/comm/nccl.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "parallel/comm/backend.h"
#include "parallel/comm/nccl_queue.h"
#include "parallel/comm/peer_window.h"

namespace transmamba {
namespace {

/// A message of a pipeline waits on them for its other side while stages compute, which miss them: 8 of 132
/// cost an H200 little and carry a stage's output in a fraction of a millisecond.
constexpr int kLaneProcessors = 8;

using Kind = Call::Kind;
using State = NcclEngine::State;

/// NCCL itself: its calls in the compute stream, which the watch of a wait knows nothing of.
class BareNccl : public BareCalls {
 public:
  BareNccl(const std::shared_ptr<State>& engine, const std::string& axis, ncclComm_t comm)
      : compute_(engine->compute), queue_(engine, axis + ", bare", comm) {}
  void make(const Call& call) override { queue_.make(call, compute_); }

 private:
  const Stream compute_;
  NcclQueue queue_;
};

class NcclCommunicator : public Communicator {
 public:
  NcclCommunicator(std::unique_ptr<Communicator> host, std::shared_ptr<State> engine)
      : Communicator(host->axis(), host->rank(), host->size(), recorder_of(*host)),
        host_(std::move(host)),
        engine_(std::move(engine)),
        calls_(engine_, axis(), make_comm(), size() - 1) {}
  /// The end of a communicator waits for that of the node's other ranks: one lane after the other, as made.
  ~NcclCommunicator() override {
    for (std::unique_ptr<NcclQueue>& lane : lanes_) lane.reset();
  }
  Allocator* window() override { return window_ ? &window_->memory() : nullptr; }
  void expect(std::span<const Incoming> incoming) override {
    engine_->must_be_whole();
    if (window_ && !incoming.empty())
      calls_.prepare([&](const Stream& stream) { window_->expect(incoming, stream); });
  }

 private:
  /// Messages between two ranks have a queue of their own for every lane and direction. Sends of NCCL wait
  /// for their receives and calls of one queue for each other, so in a queue that two kinds of messages
  /// shared a receive that was started early (parallel/pipeline/executor.cpp starts that of the next action
  /// before this one's send) would hold up the send that its sender waits for. With one sender, one receiver
  /// and one order, which check_schedule() proves of a pipeline, both sides enqueue the same calls.
  struct Ring {
    std::string purpose;
    int step = 1;
    NcclQueue *out = nullptr, *in = nullptr;  // to rank 1 of the pair, and from its rank 0
    std::shared_ptr<PeerWindow> window;       // that takes them instead of NCCL
    int channel = 0;                          // in it
    std::int64_t slot = 0, bytes = 0;
  };

  std::unique_ptr<Pending::Work> start(const Call& call) override {
    engine_->must_be_whole();
    if (is_empty(call)) return nullptr;  // on every rank, whatever its address
    if (!is_on_gpu(call, engine_->memory, axis())) return start_on(*host_, call);
    if (call.kind == Kind::exchange && call.outgoing.empty() && call.incoming.empty()) {
      calls_.skip();
      return nullptr;
    }
    const bool is_message = call.kind == Kind::send || call.kind == Kind::receive;
    if (is_message) return start_message(call);
    if (window_ && window_->takes(call))
      return calls_.run(call, [&](const Stream& stream) { window_->exchange(call, stream); });
    if (sums_ && sums_->adds(call))
      return calls_.run(call, [&](const Stream& stream) { sums_->reduce_scatter(call, stream); });
    return calls_.run(call);
  }

  std::unique_ptr<Pending::Work> start_message(const Call& call) const {
    const bool sends = call.kind == Kind::send;
    for (const Ring& ring : rings_) {
      if (ring.purpose != call.purpose ||
          call.peer != (rank() + (sends ? ring.step : -ring.step) + size()) % size())
        continue;
      NcclQueue& queue = sends ? *ring.out : *ring.in;
      if (!ring.window) return queue.run(call);
      const std::size_t bytes = bytes_of(sends ? call.in : ConstView(call.out));
      check(bytes <= static_cast<std::size_t>(ring.bytes), axis(), "{}: the lane is for {} bytes",
            to_string(call), ring.bytes);
      return queue.run(
          call, [&](const Stream& stream) { ring.window->pass(call, ring.channel, ring.slot, stream); });
    }
    fail(axis(), "{}: messages of GPU memory need a lane: open_lanes() was asked for none of these",
         to_string(call));
  }

  /// All of them by copy engines, or none.
  void make_lanes(std::span<const Lane> lanes) override {
    std::vector<Lane> all;  // that are new
    for (const Lane& lane : lanes) {
      check(lane.step == 1 || lane.step == -1, axis(), "lane for {}: expected a step of 1 or -1, got {}",
            lane.purpose, lane.step);
      const auto is_same = [&](const Ring& r) { return r.purpose == lane.purpose && r.step == lane.step; };
      if (std::none_of(rings_.begin(), rings_.end(), is_same)) all.push_back(lane);
    }
    if (all.empty() || make_window_lanes(all)) return;
    for (const Lane& lane : all) make_nccl_lane(lane);
  }

  bool make_window_lanes(std::span<const Lane> lanes) {
    std::int64_t bytes = 0;
    for (const Lane& lane : lanes) {
      if (lane.bytes == 0) return false;
      bytes += window_room(lane.bytes);
    }
    const std::shared_ptr<PeerWindow> window = open_peers(bytes, static_cast<int>(lanes.size()));
    if (!window) return false;
    std::int64_t slot = 0;
    for (std::size_t i = 0; i < lanes.size(); ++i) {
      const std::string name = fmt::format("{}: {}", axis(), lanes[i].purpose);
      const auto queue = [&] {
        return lanes_.emplace_back(std::make_unique<NcclQueue>(engine_, name, nullptr)).get();
      };
      rings_.push_back({std::string(lanes[i].purpose), lanes[i].step, queue(), queue(), window,
                        static_cast<int>(i), slot, lanes[i].bytes});
      slot += window_room(lanes[i].bytes);
    }
    return true;
  }

  std::shared_ptr<PeerWindow> open_peers(std::int64_t bytes, int channels) {
    std::shared_ptr<PeerWindow> window = PeerWindow::open(*host_, bytes, channels);
    if (window) engine_->windows.push_back(window);
    return window;
  }

  /// A pair of neighbours at a time has each rank, so that the pairs of a phase are made by one split: edge k
  /// of the ring is between ranks k and k + 1, and edges of one phase do not touch.
  void make_nccl_lane(const Lane& lane) {
    const int n = size();
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.maxCTAs = kLaneProcessors;
    const auto phase_of = [&](int edge) { return n % 2 == 1 && edge == n - 1 ? 2 : edge % 2; };
    Ring& ring = rings_.emplace_back();
    ring.purpose = lane.purpose, ring.step = lane.step;
    for (int phase = 0; phase < 2 + n % 2; ++phase) {
      const int after = rank(), before = (rank() + n - 1) % n;  // this rank's edges
      const bool is_first = phase_of(after) == phase, is_second = phase_of(before) == phase;
      const bool sends = is_first == (lane.step == 1);
      ncclComm_t pair = nullptr;
      const int color = is_first ? after : is_second ? before : NCCL_SPLIT_NOCOLOR;
      engine_->must(ncclCommSplit(calls_.comm(), color, sends ? 0 : 1, &pair, &config), axis(),
                    fmt::format("lane for {}", lane.purpose));
      if (color == NCCL_SPLIT_NOCOLOR) continue;
      const std::string name = fmt::format("{}: {}", axis(), lane.purpose);
      NcclQueue*& queue = sends ? ring.out : ring.in;
      queue = lanes_.emplace_back(std::make_unique<NcclQueue>(engine_, name, pair)).get();
      queue->connect(sends);
    }
  }

  void make_window(std::int64_t bytes) override {
    check(!window_, axis(), "a group has one window");
    window_ = open_peers(bytes, 1);
  }
  bool make_sums(std::int64_t bytes) override {
    if (!sums_) sums_ = open_peers(bytes, 1);
    if (sums_) sums_->load_sum(engine_->compute);
    return sums_ != nullptr;
  }

  /// Not ncclCommSplit, which all ranks of this group would have to call: those that end up alone do not.
  std::unique_ptr<Communicator> make_split(std::string axis, const std::vector<int>& members,
                                           int split) override {
    return std::make_unique<NcclCommunicator>(split_of(*host_, std::move(axis), members, split), engine_);
  }

  std::unique_ptr<BareCalls> bare() override {
    return std::make_unique<BareNccl>(engine_, axis(), make_comm());
  }
  bool takes_bf16() const override { return true; }
  void copy_own(std::byte* to, const std::byte* from, std::size_t bytes) override {
    gpu::copy(to, from, static_cast<std::int64_t>(bytes), engine_->compute);
  }

  ncclComm_t make_comm() {
    ncclUniqueId id{};
    if (rank() == 0) engine_->must(ncclGetUniqueId(&id), axis(), "making a group");
    host_->broadcast("NCCL's id", View(reinterpret_cast<std::byte*>(&id), DType::i32, {sizeof id / 4}), 0);
    ncclComm_t comm = nullptr;
    engine_->must(ncclCommInitRank(&comm, size(), id, rank()), axis(),
                  fmt::format("making a group of {} ranks", size()));
    return comm;
  }

  std::unique_ptr<Communicator> host_;
  std::shared_ptr<State> engine_;
  std::shared_ptr<PeerWindow> window_, sums_;  // end after all calls
  NcclQueue calls_;
  std::vector<Ring> rings_;
  std::vector<std::unique_ptr<NcclQueue>> lanes_;  // of all rings
};

}  // namespace

NcclEngine::NcclEngine(const Stream& compute, const Allocator& memory, double timeout_seconds)
    : state_(std::make_shared<State>()) {
  state_->memory = memory, state_->compute = compute, state_->watch = this;
  set_timeout(timeout_seconds);
}
NcclEngine::~NcclEngine() = default;

void NcclEngine::set_timeout(double seconds) { state_->waits.set_timeout(seconds); }

void NcclEngine::look(double seconds) {
  State& state = *state_;
  state.must_be_whole();
  bool moved = seconds < std::exchange(state.looked, seconds), is_under_way = false;
  for (NcclQueue* queue : state.queues) {
    moved |= queue->trim();
    const NcclFlight* const oldest = queue->oldest();
    is_under_way |= oldest != nullptr;
    if (const ncclResult_t result = queue->async_error(); result != ncclSuccess)
      state.must(result, queue->axis(), oldest ? to_string(oldest->call) : "between calls");
  }
  const auto now = std::chrono::steady_clock::now();
  if (moved || !is_under_way) state.moved = now;
  const auto under_way = [&] {
    std::vector<GpuCall> calls;
    for (const NcclQueue* queue : state.queues)
      if (const NcclFlight* const one = queue->oldest())
        calls.push_back({&one->call, queue->axis(), one->number, one->turn});
    return calls;
  };
  const double waited = std::chrono::duration<double>(now - state.moved).count();
  if (const std::string late = state.waits.look(waited, under_way); !late.empty()) state.break_with(late);
}

std::unique_ptr<Communicator> nccl_communicator(std::unique_ptr<Communicator> host, NcclEngine& engine) {
  engine.state()->waits.belong_to(*host);
  return std::make_unique<NcclCommunicator>(std::move(host), engine.state());
}

}  // namespace transmamba
