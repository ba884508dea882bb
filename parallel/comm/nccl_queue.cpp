#include "parallel/comm/nccl_queue.h"

#include <algorithm>
#include <exception>
#include <future>
#include <thread>
#include <utility>

#include "parallel/comm/peer_window.h"

namespace transmamba {
namespace {

static_assert(NCCL_VERSION_CODE >= NCCL_VERSION(2, 22, 0), "before, ncclCommAbort cannot be grouped");

using Kind = Call::Kind;
using State = NcclEngine::State;

class Enqueued : public Pending::Work {
 public:
  explicit Enqueued(std::shared_ptr<NcclFlight> flight) : flight_(std::move(flight)) {}
  ~Enqueued() override {
    try {
      flight_->order();       // its buffers may be handed out again now
    } catch (const Error&) {  // NOLINT: the GPU has failed, which its next call says
    }
  }
  void wait() override {
    flight_->engine->must_be_whole();
    flight_->order();
  }
  bool poll() override { return flight_->event.passed(); }

 private:
  std::shared_ptr<NcclFlight> flight_;
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
  for (const Outgoing& m : call.outgoing)
    if (result == ncclSuccess)
      result = ncclSend(m.data.raw(), count_of(m.data), type_of(m.data), m.peer, comm, stream);
  for (const Incoming& m : call.incoming)
    if (result == ncclSuccess)
      result = ncclRecv(m.data.raw(), count_of(m.data), type_of(m.data), m.peer, comm, stream);
  const ncclResult_t end = ncclGroupEnd();
  return result == ncclSuccess ? end : result;
}

/// Of a message's pair rank 0 is the sender. It is a broadcast because of a collective call NCCL bounds the
/// multiprocessors that it waits on (maxCTAs of its communicator), and of a send only those of all sends of a
/// process.
ncclResult_t call_nccl(const Call& call, ncclComm_t comm, cudaStream_t stream) {
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
    case Kind::send: return ncclBroadcast(in, const_cast<std::byte*>(in), count, type, 0, comm, stream);
    case Kind::receive: return ncclBroadcast(out, out, count, type, 0, comm, stream);
    case Kind::barrier: break;
  }
  return ncclInvalidUsage;
}

}  // namespace

void State::break_with(const std::string& text) {
  if (!error) error = text;
  throw LostRank(*error);
}

void State::must_be_whole() const {
  if (error) throw LostRank(*error);
}

void State::must(ncclResult_t result, std::string_view axis, const std::string& what) {
  if (result == ncclSuccess) return;
  const std::string text =
      fmt::format("[{}] {}: NCCL: {}: {}", axis, what, ncclGetErrorString(result), ncclGetLastError(nullptr));
  if (result != ncclInvalidArgument && result != ncclInvalidUsage) break_with(text);
  if (!error) error = text;  // a mistake of ours, and nobody's loss
  throw Error(text);
}

gpu::Event State::take_event() {
  if (events.empty()) return {};
  gpu::Event event = std::move(events.back());
  events.pop_back();
  return event;
}

/// In a group of NCCL's, which tells the kernels of all to end before it waits for any: one may stand behind
/// another's. They end at once; what else NCCL does may wait for other ranks, and this one still has to say
/// what went wrong, so it is left to itself after a while.
void State::abort() {
  if (!error) error = "[nccl] calls on GPU memory were given up as another error ended this rank's work";
  for (const std::weak_ptr<PeerWindow>& window : windows)
    if (const auto open = window.lock()) open->release();
  std::vector<ncclComm_t> comms;
  for (NcclQueue* queue : queues)
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

NcclFlight::NcclFlight(std::shared_ptr<State> of, const Call& made)
    : engine(std::move(of)), call(made), span(made.span), event(engine->take_event()), turn(++engine->calls) {
  call.outgoing = {}, call.incoming = {}, call.span = nullptr;  // which live shorter
}
NcclFlight::~NcclFlight() { engine->events.push_back(std::move(event)); }

void NcclFlight::order() {
  if (std::exchange(ordered, true)) return;
  if (span) span->is_awaited_by(engine->compute);
  event.hold(engine->compute);
}

NcclQueue::NcclQueue(std::shared_ptr<State> engine, std::string axis, ncclComm_t comm, int peers)
    : engine_(std::move(engine)),
      axis_(std::move(axis)),
      comm_(comm),
      most_flights_(static_cast<std::size_t>(std::max(8, 128 / peers))),
      stream_(gpu::create_stream(/*urgent=*/true)) {
  stream_.watch = engine_->watch;
  engine_->queues.push_back(this);
}

NcclQueue::~NcclQueue() {
  try {
    if (std::uncaught_exceptions() == 0 && !engine_->error) {
      gpu::Event calls_of_compute;  // which are of this communicator too
      calls_of_compute.record(engine_->compute), calls_of_compute.hold(stream_);
      gpu::synchronize(stream_);
    }
  } catch (const Error&) {  // NOLINT: the engine remembers it
  }
  if (std::uncaught_exceptions() > 0 || engine_->error) engine_->abort();
  if (comm_) ncclCommDestroy(comm_);
  std::erase(engine_->queues, this);
  gpu::destroy_stream(stream_);
}

/// A call that is waited for at once stands in the compute stream itself: two waits of one stream for
/// another, one on either side of it, would cost the GPU microseconds. A communicator's calls are made one
/// after the other all the same: this one after those on the other stream, and theirs after what compute has
/// by then.
std::unique_ptr<Pending::Work> NcclQueue::run(const Call& call, const Enqueue& enqueue) {
  wait_for_room();
  auto flight = std::make_shared<NcclFlight>(engine_, call);
  flight->number = ++calls_;
  if (call.blocking) {
    if (beside_) beside_->order(), beside_.reset();
    if (call.span) call.span->begins_in(engine_->compute);
    enqueue(engine_->compute);
    if (call.span) call.span->ends_on(engine_->compute);
    flight->event.record(engine_->compute);
    flight->ordered = true;
  } else {
    flight->event.record(engine_->compute), flight->event.hold(stream_);
    if (call.span) call.span->begins_on(stream_);
    enqueue(stream_);
    if (call.span) call.span->ends_on(stream_);
    flight->event.record(stream_);
    beside_ = flight;
  }
  flights_.push_back(flight);
  return std::make_unique<Enqueued>(std::move(flight));
}

void NcclQueue::prepare(const Enqueue& enqueue) {
  auto flight = std::make_shared<NcclFlight>(engine_, Call());  // not under way: nobody waits for it
  flight->event.record(engine_->compute), flight->event.hold(stream_);
  enqueue(stream_);
  flight->event.record(stream_);
  beside_ = std::move(flight);
}

/// A host that is far ahead would wait in the driver, which knows nothing of ranks that are gone. Asking
/// whether a call is over takes as long as a quarter of making one, so half of them are asked for at once:
/// they end in the order in which they were made.
void NcclQueue::wait_for_room() {
  if (flights_.size() < most_flights_) return;
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  auto looked = start;
  while (!flights_[most_flights_ / 2]->event.passed()) {
    const auto now = Clock::now();
    if (engine_->watch && now - looked > std::chrono::milliseconds(1)) {
      looked = now;
      engine_->watch->look(std::chrono::duration<double>(now - start).count());
    }
    std::this_thread::yield();
    if (flights_.size() <= most_flights_ / 2) return;  // look() has forgotten them
  }
  flights_.erase(flights_.begin(), flights_.begin() + static_cast<std::ptrdiff_t>(most_flights_ / 2) + 1);
}

void NcclQueue::connect(bool sends) {
  Call call;
  call.kind = sends ? Kind::send : Kind::receive, call.purpose = "connecting";
  void* word = nullptr;
  check(cudaMalloc(&word, 4) == cudaSuccess, axis_, "out of GPU memory for NCCL");
  const std::unique_ptr<void, cudaError_t (*)(void*)> owned(word, cudaFree);
  call.in = call.out = View(static_cast<std::byte*>(word), DType::i32, {1});
  make(call, stream_);
  gpu::synchronize(stream_);
}

void NcclQueue::make(const Call& call, const Stream& stream) const {
  const ncclResult_t result = call_nccl(call, comm_, static_cast<cudaStream_t>(stream.handle));
  if (result != ncclSuccess) engine_->must(result, axis_, to_string(call));
}

bool NcclQueue::trim() {
  const std::size_t before = flights_.size();
  while (!flights_.empty() && flights_.front()->event.passed()) flights_.pop_front();
  return flights_.size() < before;
}

ncclResult_t NcclQueue::async_error() const {
  ncclResult_t error = ncclSuccess;
  const ncclResult_t result = comm_ ? ncclCommGetAsyncError(comm_, &error) : ncclSuccess;
  if (result != ncclSuccess) return result;
  return error == ncclInProgress ? ncclSuccess : error;
}

ncclComm_t NcclQueue::give_up() { return std::exchange(comm_, nullptr); }

}  // namespace transmamba
