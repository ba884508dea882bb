// The front of every Communicator: it checks, counts, and does by itself what needs no other rank.
#include "parallel/comm/communicator.h"

#include <algorithm>
#include <exception>
#include <map>

#include "parallel/comm/backend.h"
#include "parallel/comm/call_check.h"
#include "parallel/comm/timed_call.h"

namespace transmamba {
namespace {

using Kind = Call::Kind;

class SelfCommunicator : public Communicator {
 public:
  SelfCommunicator(std::string axis, std::shared_ptr<Recorder> recorder)
      : Communicator(std::move(axis), 0, 1, std::move(recorder)) {}

 private:
  std::unique_ptr<Pending::Work> start(const Call& call) override {
    fail(axis(), "{}: a group of one rank has nobody to talk to", to_string(call));
  }
  std::unique_ptr<Communicator> make_split(std::string, const std::vector<int>&, int) override {
    fail(axis(), "split: a group of one rank cannot have groups of more");
  }
};

}  // namespace

Pending::Pending(std::unique_ptr<Work> work)
    : work_(std::move(work)), exceptions_(std::uncaught_exceptions()) {}

Pending& Pending::operator=(Pending&& other) noexcept {
  if (this == &other) return *this;
  finish();
  work_ = std::move(other.work_), exceptions_ = other.exceptions_;
  return *this;
}

Pending::~Pending() { finish(); }

void Pending::wait() {
  if (const auto work = std::move(work_)) work->wait();
}

bool Pending::poll() { return !work_ || work_->poll(); }

void Pending::finish() noexcept {
  try {
    // While an exception passes, other ranks may never make their side of this call.
    if (std::uncaught_exceptions() <= exceptions_) wait();
  } catch (...) {  // NOLINT: a broken group says so again at its next call
  }
  work_.reset();
}

/// The nth message of a tag is for the nth receive of that tag.
struct Communicator::OwnMessages {
  struct Box {
    std::int64_t sent = 0, asked = 0;
    std::map<std::int64_t, Bytes> waiting;
  };
  std::map<int, Box> boxes;

  struct Receive : Pending::Work {
    Receive(std::shared_ptr<OwnMessages> own, const Call& call, std::string axis)
        : own_(std::move(own)), call_(call), axis_(std::move(axis)), number_(own_->boxes[call.tag].asked++) {}
    void wait() override {
      auto& waiting = own_->boxes[call_.tag].waiting;
      const auto found = waiting.find(number_);
      check(found != waiting.end(), axis_,
            "{}: waits for a message of this rank to itself that it has not sent", to_string(call_));
      check(found->second.size() == bytes_of(call_.out), axis_, "{}: the message has {} bytes",
            to_string(call_), found->second.size());
      copy_bytes(call_.out.raw(), found->second.data(), found->second.size());
      waiting.erase(found);
    }
    std::shared_ptr<OwnMessages> own_;
    Call call_;
    std::string axis_;
    std::int64_t number_;
  };
};

Communicator::Communicator(std::string axis, int rank, int size, std::shared_ptr<Recorder> recorder)
    : recorder_(recorder ? std::move(recorder) : std::make_shared<Recorder>()),
      axis_(std::move(axis)),
      group_(axis_),
      rank_(rank),
      size_(size),
      own_messages_(std::make_shared<OwnMessages>()) {}

Communicator::~Communicator() = default;

void Communicator::make_lanes(std::span<const Lane>) {}
void Communicator::make_window(std::int64_t) {}
bool Communicator::make_sums(std::int64_t) { return false; }
void Communicator::copy_own(std::byte* to, const std::byte* from, std::size_t bytes) {
  copy_bytes(to, from, bytes);
}

Pending Communicator::begin(const Call& call) {
  check_call(call, axis_, rank_, size_, takes_bf16());
  if (call.kind == Kind::exchange) return begin_exchange(call);
  if ((call.kind == Kind::send || call.kind == Kind::receive) && call.peer == rank_)
    return begin_own_message(call);
  if (size_ == 1) {  // all_gather and reduce_scatter are copies, the others change nothing
    if (call.kind == Kind::all_gather || call.kind == Kind::reduce_scatter)
      copy_bytes(call.out.raw(), call.in.raw(), bytes_of(call.out));
    return {};
  }
  return begin_timed(call);
}

Pending Communicator::begin_timed(Call call) {
  auto timed = std::make_unique<TimedCall>(*this, recorder_, call);
  call.span = timed->span();
  timed->started(start(call));
  return Pending(std::move(timed));
}

Pending Communicator::begin_exchange(Call call) {
  std::vector<Outgoing> outgoing;
  std::vector<Incoming> incoming;
  ConstView own_out;
  View own_in;
  for (const Outgoing& message : call.outgoing)
    if (message.peer == rank_)
      own_out = message.data;
    else if (message.data.numel() > 0)
      outgoing.push_back(message);
  for (const Incoming& message : call.incoming)
    if (message.peer == rank_)
      own_in = message.data;
    else if (message.data.numel() > 0)
      incoming.push_back(message);
  const auto size = [](const auto& view) { return view ? bytes_of(view) : 0; };
  check(size(own_out) == size(own_in) && (size(own_in) == 0 || own_out.dtype() == own_in.dtype()), axis_,
        "{}: to itself it sends {} bytes of {} and expects {} of {}", to_string(call), size(own_out),
        own_out.dtype(), size(own_in), own_in.dtype());
  if (size(own_in) > 0) copy_own(own_in.raw(), own_out.raw(), size(own_in));
  if (size_ == 1) return {};
  call.outgoing = outgoing, call.incoming = incoming;
  return begin_timed(call);
}

Pending Communicator::begin_own_message(const Call& call) {
  if (call.kind == Kind::receive)
    return Pending(std::make_unique<OwnMessages::Receive>(own_messages_, call, axis_));
  auto& box = own_messages_->boxes[call.tag];
  box.waiting.emplace(box.sent++, Bytes(call.in));
  return {};
}

namespace {

Call all_reduce_of(std::string_view purpose, View x, Reduce reduce, Site where) {
  return {.kind = Kind::all_reduce, .purpose = purpose, .in = x, .out = x, .reduce = reduce, .where = where};
}
Call all_gather_of(std::string_view purpose, ConstView mine, View all, Site where) {
  return {.kind = Kind::all_gather, .purpose = purpose, .in = mine, .out = all, .where = where};
}
Call reduce_scatter_of(std::string_view purpose, View all, View mine, Site where) {
  return {.kind = Kind::reduce_scatter, .purpose = purpose, .in = all, .out = mine, .where = where};
}
Call broadcast_of(std::string_view purpose, View x, int root, Site where) {
  return {.kind = Kind::broadcast, .purpose = purpose, .in = x, .out = x, .peer = root, .where = where};
}
Call exchange_of(std::string_view purpose, std::span<const Outgoing> outgoing,
                 std::span<const Incoming> incoming, Site where) {
  return {
      .kind = Kind::exchange, .purpose = purpose, .outgoing = outgoing, .incoming = incoming, .where = where};
}
Call send_of(std::string_view purpose, ConstView data, int peer, int tag, Site where) {
  return {.kind = Kind::send, .purpose = purpose, .in = data, .peer = peer, .tag = tag, .where = where};
}
Call receive_of(std::string_view purpose, View data, int peer, int tag, Site where) {
  return {.kind = Kind::receive, .purpose = purpose, .out = data, .peer = peer, .tag = tag, .where = where};
}

}  // namespace

Pending Communicator::start_all_reduce(std::string_view purpose, View x, Reduce reduce, Site where) {
  return begin(all_reduce_of(purpose, x, reduce, where));
}
Pending Communicator::start_all_gather(std::string_view purpose, ConstView mine, View all, Site where) {
  return begin(all_gather_of(purpose, mine, all, where));
}
Pending Communicator::start_reduce_scatter(std::string_view purpose, View all, View mine, Site where) {
  return begin(reduce_scatter_of(purpose, all, mine, where));
}
Pending Communicator::start_broadcast(std::string_view purpose, View x, int root, Site where) {
  return begin(broadcast_of(purpose, x, root, where));
}
Pending Communicator::start_exchange(std::string_view purpose, std::span<const Outgoing> outgoing,
                                     std::span<const Incoming> incoming, Site where) {
  return begin(exchange_of(purpose, outgoing, incoming, where));
}
Pending Communicator::start_send(std::string_view purpose, ConstView data, int peer, int tag, Site where) {
  return begin(send_of(purpose, data, peer, tag, where));
}
Pending Communicator::start_receive(std::string_view purpose, View data, int peer, int tag, Site where) {
  return begin(receive_of(purpose, data, peer, tag, where));
}

void Communicator::run(Call call) {
  call.blocking = true;
  begin(call).wait();
}
void Communicator::all_reduce(std::string_view purpose, View x, Reduce reduce, Site where) {
  run(all_reduce_of(purpose, x, reduce, where));
}
void Communicator::all_gather(std::string_view purpose, ConstView mine, View all, Site where) {
  run(all_gather_of(purpose, mine, all, where));
}
void Communicator::reduce_scatter(std::string_view purpose, View all, View mine, Site where) {
  run(reduce_scatter_of(purpose, all, mine, where));
}
void Communicator::broadcast(std::string_view purpose, View x, int root, Site where) {
  run(broadcast_of(purpose, x, root, where));
}
void Communicator::exchange(std::string_view purpose, std::span<const Outgoing> outgoing,
                            std::span<const Incoming> incoming, Site where) {
  run(exchange_of(purpose, outgoing, incoming, where));
}
void Communicator::send(std::string_view purpose, ConstView data, int peer, int tag, Site where) {
  run(send_of(purpose, data, peer, tag, where));
}
void Communicator::receive(std::string_view purpose, View data, int peer, int tag, Site where) {
  run(receive_of(purpose, data, peer, tag, where));
}
void Communicator::barrier(std::string_view purpose, Site where) {
  run({.kind = Kind::barrier, .purpose = purpose, .where = where});
}

std::unique_ptr<BareCalls> Communicator::bare() { return nullptr; }

void Communicator::open_lanes(std::span<const Lane> lanes) {
  if (size_ > 1) make_lanes(lanes);
}

void Communicator::open_window(std::int64_t bytes) {
  if (size_ > 1) make_window(bytes);
}

bool Communicator::open_sums(std::int64_t bytes) { return size_ > 1 && make_sums(bytes); }

std::unique_ptr<Communicator> Communicator::split(std::string axis, int color, int order, Site where) {
  check(color >= 0, axis_, "split into {}: color: expected one >= 0, got {}", axis, color);
  // Everyone learns everyone's choice, so that each rank can name its group's members by itself.
  std::vector<std::int32_t> all(2 * static_cast<std::size_t>(size_));
  const std::int32_t mine[2] = {color, order};
  all_gather("split", ConstView(reinterpret_cast<const std::byte*>(mine), DType::i32, {2}),
             View(reinterpret_cast<std::byte*>(all.data()), DType::i32, {2 * size_}), where);
  std::vector<int> members;
  for (int rank = 0; rank < size_; ++rank)
    if (all[2 * static_cast<std::size_t>(rank)] == color) members.push_back(rank);
  std::stable_sort(members.begin(), members.end(), [&](int a, int b) {
    return all[2 * static_cast<std::size_t>(a) + 1] < all[2 * static_cast<std::size_t>(b) + 1];
  });
  const int split = splits_++;
  if (members.size() == 1) return self_communicator(std::move(axis), recorder_);
  auto made = make_split(std::move(axis), members, split);
  made->group_ = fmt::format("{}/{}.{}", group_, split, color);
  return made;
}

std::unique_ptr<Communicator> self_communicator(std::string axis, std::shared_ptr<Recorder> recorder) {
  return std::make_unique<SelfCommunicator>(std::move(axis), std::move(recorder));
}

}  // namespace transmamba
