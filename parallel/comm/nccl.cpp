#include "parallel/comm/nccl.h"

#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <exception>
#include <future>
#include <limits>
#include <optional>
#include <thread>
#include <utility>

#include "core/profile.h"
#include "kernels/device.h"
#include "parallel/comm/backend.h"

namespace transmamba {
namespace {

static_assert(NCCL_VERSION_CODE >= NCCL_VERSION(2, 22, 0), "before, ncclCommAbort cannot be grouped");

using Kind = Call::Kind;
using Clock = std::chrono::steady_clock;

class Queue;

}  // namespace

struct NcclEngine::State {
  Stream compute;
  Watch* watch = nullptr;
  double timeout = 0;
  int rank = 0;                      // of this process
  std::optional<std::string> error;  // the first: after it nothing can be relied on
  std::vector<Queue*> queues;
  std::vector<gpu::Event> events;  // to be used again
  double looked = std::numeric_limits<double>::infinity();
  Clock::time_point moved;  // a wait began, or a call came to its end

  [[noreturn]] void break_with(const std::string& text) {
    if (!error) error = text;
    throw Error(*error);
  }
  void must(ncclResult_t result, std::string_view axis, const std::string& what) {
    if (result != ncclSuccess)
      break_with(fmt::format("[{}] {}: NCCL: {}: {}", axis, what, ncclGetErrorString(result),
                             ncclGetLastError(nullptr)));
  }
  gpu::Event take_event() {
    if (events.empty()) return {};
    gpu::Event event = std::move(events.back());
    events.pop_back();
    return event;
  }
  void abort();
};

namespace {

using State = NcclEngine::State;

/// A call that may be under way on the GPU.
struct Flight {
  Flight(std::shared_ptr<State> of, const Call& made)
      : engine(std::move(of)), call(made), event(engine->take_event()) {
    call.outgoing = {}, call.incoming = {}, call.span = nullptr;  // which live shorter
  }
  ~Flight() { engine->events.push_back(std::move(event)); }
  Flight(const Flight&) = delete;
  Flight& operator=(const Flight&) = delete;
  const std::shared_ptr<State> engine;
  Call call;
  gpu::Event event;  // after it
};

class Enqueued : public Pending::Work {
 public:
  Enqueued(std::shared_ptr<Flight> flight, CallSpan* span) : flight_(std::move(flight)), span_(span) {}
  ~Enqueued() override {
    try {
      order();                // its buffers may be handed out again now
    } catch (const Error&) {  // NOLINT: the GPU has failed, which its next call says
    }
  }
  void wait() override {
    if (flight_->engine->error) throw Error(*flight_->engine->error);
    order();
  }
  bool poll() override { return flight_->event.passed(); }

 private:
  void order() {
    if (std::exchange(ordered_, true)) return;
    if (span_) span_->is_awaited_by(flight_->engine->compute);
    flight_->event.hold(flight_->engine->compute);
  }
  std::shared_ptr<Flight> flight_;
  CallSpan* span_;
  bool ordered_ = false;
};

ncclDataType_t type_of(const ConstView& x) {
  switch (x.dtype()) {
    case DType::f32: return ncclFloat32;
    case DType::f64: return ncclFloat64;
    case DType::bf16: return ncclBfloat16;
    case DType::i32: return ncclInt32;
  }
  fail("nccl", "no type of NCCL's for {}", x.dtype());
}
std::size_t count_of(const ConstView& x) { return static_cast<std::size_t>(x.numel()); }

/// An exchange is one group: its sends and receives do not wait for each other.
ncclResult_t exchange(const Call& call, ncclComm_t comm, cudaStream_t stream) {
  ncclResult_t result = ncclGroupStart();
  for (const auto& [peer, x] : call.outgoing)
    if (result == ncclSuccess) result = ncclSend(x.raw(), count_of(x), type_of(x), peer, comm, stream);
  for (const auto& [peer, x] : call.incoming)
    if (result == ncclSuccess) result = ncclRecv(x.raw(), count_of(x), type_of(x), peer, comm, stream);
  const ncclResult_t end = ncclGroupEnd();
  return result == ncclSuccess ? end : result;
}

/// Of a message's pair rank 0 is the sender.
ncclResult_t enqueue(const Call& call, ncclComm_t comm, cudaStream_t stream) {
  const std::byte* const in = call.in.raw();
  std::byte* const out = call.out.raw();
  const ConstView counted = call.kind == Kind::all_gather || call.kind == Kind::send ? call.in : call.out;
  const std::size_t count = count_of(counted);
  const ncclDataType_t type = type_of(counted);
  switch (call.kind) {
    case Kind::all_reduce:
      return ncclAllReduce(in, out, count, type, call.reduce == Reduce::max ? ncclMax : ncclSum, comm,
                           stream);
    case Kind::all_gather: return ncclAllGather(in, out, count, type, comm, stream);
    case Kind::reduce_scatter: return ncclReduceScatter(in, out, count, type, ncclSum, comm, stream);
    case Kind::broadcast: return ncclBroadcast(in, out, count, type, call.peer, comm, stream);
    case Kind::exchange: return exchange(call, comm, stream);
    case Kind::send: return ncclSend(in, count, type, 1, comm, stream);
    case Kind::receive: return ncclRecv(out, count, type, 0, comm, stream);
    case Kind::barrier: break;
  }
  return ncclInvalidUsage;
}

/// Calls that the GPU makes one after the other, in the order in which they were enqueued: an NCCL
/// communicator with a stream of its own.
class Queue {
 public:
  Queue(std::shared_ptr<State> engine, std::string axis, ncclComm_t comm)
      : engine_(std::move(engine)),
        axis_(std::move(axis)),
        comm_(comm),
        stream_(gpu::create_stream(/*urgent=*/true)) {
    stream_.watch = engine_->watch;
    engine_->queues.push_back(this);
  }
  ~Queue() {
    try {
      if (std::uncaught_exceptions() == 0 && !engine_->error) gpu::synchronize(stream_);
    } catch (const Error&) {  // NOLINT: the engine remembers it
    }
    if (std::uncaught_exceptions() > 0 || engine_->error) engine_->abort();
    if (comm_) ncclCommDestroy(comm_);
    std::erase(engine_->queues, this);
    gpu::destroy_stream(stream_);
  }
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  std::unique_ptr<Pending::Work> run(const Call& call) {
    constexpr std::size_t kMostFlights = 64;
    if (flights_.size() >= kMostFlights) trim();
    auto flight = std::make_shared<Flight>(engine_, call);
    flight->event.record(engine_->compute), flight->event.hold(stream_);
    if (call.span) call.span->begins_on(stream_);
    make(call);
    if (call.span) call.span->ends_on(stream_);
    flight->event.record(stream_);
    flights_.push_back(flight);
    return std::make_unique<Enqueued>(std::move(flight), call.span);
  }

  /// The first message of a pair, for which the hosts wait for each other: not in the midst of a schedule,
  /// which knows nothing of that.
  void connect(bool sends) {
    Call call;
    call.kind = sends ? Kind::send : Kind::receive, call.purpose = "connecting";
    void* word = nullptr;
    check(cudaMalloc(&word, 4) == cudaSuccess, axis_, "out of GPU memory for NCCL");
    const std::unique_ptr<void, cudaError_t (*)(void*)> owned(word, cudaFree);
    call.in = call.out = View(static_cast<std::byte*>(word), DType::i32, {1});
    make(call);
    gpu::synchronize(stream_);
  }

  ncclComm_t comm() const { return comm_; }
  const std::string& axis() const { return axis_; }
  const Call* oldest() const { return flights_.empty() ? nullptr : &flights_.front()->call; }
  /// Forgets calls that are over; true where there were any.
  bool trim() {
    const std::size_t before = flights_.size();
    while (!flights_.empty() && flights_.front()->event.passed()) flights_.pop_front();
    return flights_.size() < before;
  }
  /// An error of NCCL's own threads, of a network say.
  ncclResult_t async_error() const {
    ncclResult_t error = ncclSuccess;
    const ncclResult_t result = comm_ ? ncclCommGetAsyncError(comm_, &error) : ncclSuccess;
    if (result != ncclSuccess) return result;
    return error == ncclInProgress ? ncclSuccess : error;
  }
  ncclComm_t give_up() { return std::exchange(comm_, nullptr); }

 private:
  void make(const Call& call) const {
    const ncclResult_t result = enqueue(call, comm_, static_cast<cudaStream_t>(stream_.handle));
    if (result != ncclSuccess) engine_->must(result, axis_, to_string(call));
  }
  const std::shared_ptr<State> engine_;
  const std::string axis_;
  ncclComm_t comm_;
  Stream stream_;
  std::deque<std::shared_ptr<Flight>> flights_;
};

class NcclCommunicator : public Communicator {
 public:
  NcclCommunicator(std::unique_ptr<Communicator> host, std::shared_ptr<State> engine)
      : Communicator(host->axis(), host->rank(), host->size(), recorder_of(*host)),
        host_(std::move(host)),
        engine_(std::move(engine)),
        calls_(engine_, axis(), make_comm()) {}
  /// The end of a communicator waits for that of the node's other ranks: one lane after the other, as made.
  ~NcclCommunicator() override {
    for (std::unique_ptr<Queue>& lane : lanes_) lane.reset();
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
    Queue *out = nullptr, *in = nullptr;  // to rank 1 of the pair, and from its rank 0
  };

  std::unique_ptr<Pending::Work> start(const Call& call) override {
    if (engine_->error) throw Error(*engine_->error);
    if (is_empty(call)) return nullptr;  // on every rank, whatever its address
    if (!is_on_gpu(call, axis())) return start_on(*host_, call);
    if (call.kind == Kind::exchange && call.outgoing.empty() && call.incoming.empty()) return nullptr;
    const bool is_message = call.kind == Kind::send || call.kind == Kind::receive;
    return (is_message ? message_queue(call) : calls_).run(call);
  }

  Queue& message_queue(const Call& call) const {
    const bool sends = call.kind == Kind::send;
    for (const Ring& ring : rings_)
      if (ring.purpose == call.purpose &&
          call.peer == (rank() + (sends ? ring.step : -ring.step) + size()) % size())
        return sends ? *ring.out : *ring.in;
    fail(axis(), "{}: messages of GPU memory need a lane: open_lanes() was asked for none of these",
         to_string(call));
  }

  /// A pair of neighbours at a time has each rank, so that the pairs of a phase are made by one split: edge k
  /// of the ring is between ranks k and k + 1, and edges of one phase do not touch.
  void make_lanes(std::span<const Lane> lanes) override {
    const int n = size();
    const auto phase_of = [&](int edge) { return n % 2 == 1 && edge == n - 1 ? 2 : edge % 2; };
    for (const Lane& lane : lanes) {
      check(lane.step == 1 || lane.step == -1, axis(), "lane for {}: expected a step of 1 or -1, got {}",
            lane.purpose, lane.step);
      const auto is_same = [&](const Ring& r) { return r.purpose == lane.purpose && r.step == lane.step; };
      if (std::any_of(rings_.begin(), rings_.end(), is_same)) continue;
      Ring& ring = rings_.emplace_back();
      ring.purpose = lane.purpose, ring.step = lane.step;
      for (int phase = 0; phase < 2 + n % 2; ++phase) {
        const int after = rank(), before = (rank() + n - 1) % n;  // this rank's edges
        const bool is_first = phase_of(after) == phase, is_second = phase_of(before) == phase;
        const bool sends = is_first == (lane.step == 1);
        ncclComm_t pair = nullptr;
        const int color = is_first ? after : is_second ? before : NCCL_SPLIT_NOCOLOR;
        engine_->must(ncclCommSplit(calls_.comm(), color, sends ? 0 : 1, &pair, nullptr), axis(),
                      fmt::format("lane for {}", lane.purpose));
        if (color == NCCL_SPLIT_NOCOLOR) continue;
        const std::string name = fmt::format("{}: {}", axis(), lane.purpose);
        Queue*& queue = sends ? ring.out : ring.in;
        queue = lanes_.emplace_back(std::make_unique<Queue>(engine_, name, pair)).get();
        queue->connect(sends);
      }
    }
  }

  /// Not ncclCommSplit, which all ranks of this group would have to call: those that end up alone do not.
  std::unique_ptr<Communicator> make_split(std::string axis, const std::vector<int>& members,
                                           int split) override {
    return std::make_unique<NcclCommunicator>(split_of(*host_, std::move(axis), members, split), engine_);
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
  Queue calls_;
  std::vector<Ring> rings_;
  std::vector<std::unique_ptr<Queue>> lanes_;  // of all rings
};

}  // namespace

/// In a group of NCCL's, which tells the kernels of all to end before it waits for any: one may stand behind
/// another's. They end at once; what else NCCL does may wait for other ranks, and this one still has to say
/// what went wrong, so it is left to itself after a while.
void NcclEngine::State::abort() {
  if (!error) error = "[nccl] calls on GPU memory were given up as another error ended this rank's work";
  std::vector<ncclComm_t> comms;
  for (Queue* queue : queues)
    if (ncclComm_t comm = queue->give_up()) comms.push_back(comm);
  if (comms.empty()) return;
  std::packaged_task<void()> task([comms] {
    ncclGroupStart();
    for (ncclComm_t comm : comms) ncclCommAbort(comm);
    ncclGroupEnd();
  });
  const std::future<void> done = task.get_future();
  std::thread(std::move(task)).detach();
  done.wait_for(std::chrono::seconds(2));
}

NcclEngine::NcclEngine(const Stream& compute, double timeout_seconds) : state_(std::make_shared<State>()) {
  state_->compute = compute, state_->watch = this, state_->timeout = timeout_seconds;
}
NcclEngine::~NcclEngine() = default;

void NcclEngine::set_timeout(double seconds) { state_->timeout = seconds; }

void NcclEngine::look(double seconds) {
  State& state = *state_;
  if (state.error) throw Error(*state.error);
  bool moved = seconds < std::exchange(state.looked, seconds), is_under_way = false;
  for (Queue* queue : state.queues) {
    moved |= queue->trim();
    const Call* const call = queue->oldest();
    is_under_way |= call != nullptr;
    if (const ncclResult_t result = queue->async_error(); result != ncclSuccess)
      state.must(result, queue->axis(), call ? to_string(*call) : "between calls");
  }
  const auto now = Clock::now();
  if (moved || !is_under_way) state.moved = now;
  if (std::chrono::duration<double>(now - state.moved).count() <= state.timeout) return;
  std::string calls;
  for (const Queue* queue : state.queues)
    if (const Call* const call = queue->oldest())
      calls += fmt::format("\n  {} of group {}", to_string(*call), queue->axis());
  state.break_with(fmt::format("[nccl] rank {} has waited {} s for the GPU, and none of these has ended:{}",
                               state.rank, state.timeout, calls));
}

std::unique_ptr<Communicator> nccl_communicator(std::unique_ptr<Communicator> host, NcclEngine& engine) {
  engine.state()->rank = host->rank();
  return std::make_unique<NcclCommunicator>(std::move(host), engine.state());
}

}  // namespace transmamba
