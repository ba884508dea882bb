// The front of every Communicator: it checks, counts, and does by itself what needs no other rank.
#include "parallel/comm/communicator.h"

#include <algorithm>
#include <exception>
#include <functional>
#include <map>

#include "parallel/comm/backend.h"
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

bool overlap(const ConstView& a, const ConstView& b) {
  const std::less<const std::byte*> before;
  return bytes_of(a) > 0 && bytes_of(b) > 0 && before(a.raw(), b.raw() + bytes_of(b)) &&
         before(b.raw(), a.raw() + bytes_of(a));
}

/// The arguments of one call, checked; messages begin with the group's name and end with the call.
struct Checker {
  const Call& call;
  const std::string& axis;
  int rank, size;
  bool takes_bf16;

  template <class... Args>
  void expect(bool ok, fmt::format_string<Args...> format, Args&&... args) const {
    if (!ok) fail(axis, "{}: {}", to_string(call), fmt::format(format, std::forward<Args>(args)...));
  }
  void buffer(const ConstView& x, std::string_view name) const {
    expect(x.raw() != nullptr || x.numel() == 0, "{} is absent", name);
    expect(x.contiguous(), "{}: expected a contiguous view, got strides {} for {}", name, x.strides(),
           x.shape());
    const bool stays = size == 1 && call.kind == Kind::all_gather;
    expect(stays || takes_bf16 || x.dtype() != DType::bf16, "{}: expected float32, float64 or int32, got {}",
           name, x.dtype());
  }
  void peer(std::string_view name, int peer) const {
    expect(0 <= peer && peer < size, "{}: expected a rank in [0, {}), got {}", name, size, peer);
  }
  void parts(const ConstView& all, const ConstView& mine) const {
    buffer(all, "all"), buffer(mine, "mine");
    expect(all.dtype() == mine.dtype(), "expected one type, got all of {} and mine of {}", all.dtype(),
           mine.dtype());
    expect(all.numel() == size * mine.numel(),
           "expected all to have {} times the elements of mine, got {} and {}", size, all.numel(),
           mine.numel());
    expect(mine.raw() == all.raw() + static_cast<std::size_t>(rank) * bytes_of(mine) || !overlap(all, mine),
           "mine lies in all, but is not part {} of it", rank);
  }
  template <class Messages>
  void messages(const Messages& list, std::string_view name) const {
    std::vector<bool> seen(static_cast<std::size_t>(size), false);
    for (const auto& message : list) {
      peer(name, message.peer), buffer(message.data, name);
      expect(!seen[static_cast<std::size_t>(message.peer)], "{}: expected one message a rank, got two of {}",
             name, message.peer);
      seen[static_cast<std::size_t>(message.peer)] = true;
    }
  }

  void run() const {
    switch (call.kind) {
      case Kind::all_reduce: return buffer(call.out, "x");
      case Kind::all_gather: return parts(call.out, call.in);
      case Kind::reduce_scatter: return parts(call.in, call.out);
      case Kind::broadcast: return buffer(call.out, "x"), peer("root", call.peer);
      case Kind::exchange: return messages(call.outgoing, "outgoing"), messages(call.incoming, "incoming");
      case Kind::send: buffer(call.in, "data"); break;
      case Kind::receive: buffer(call.out, "data"); break;
      case Kind::barrier: return;
    }
    peer("peer", call.peer);
    expect(0 <= call.tag && call.tag < Communicator::kMaxTag, "tag: expected one in [0, {}), got {}",
           Communicator::kMaxTag, call.tag);
  }
};

}  // namespace

const char* to_string(Call::Kind kind) {
  constexpr const char* kNames[] = {"all_reduce", "all_gather", "reduce_scatter", "broadcast",
                                    "exchange",   "send",       "receive",        "barrier"};
  return kNames[static_cast<std::size_t>(kind)];
}

std::string to_string(const Call& call) {
  std::string text = to_string(call.kind);
  const auto size = [](const ConstView& x) {
    return fmt::format(" of {} bytes ({} {})", bytes_of(x), x.numel(), x.dtype());
  };
  switch (call.kind) {
    case Kind::all_reduce: text += size(call.out) + (call.reduce == Reduce::max ? " with max" : ""); break;
    case Kind::all_gather: text += size(call.in); break;
    case Kind::reduce_scatter: text += size(call.out); break;
    case Kind::broadcast: text += size(call.out) + fmt::format(" from rank {}", call.peer); break;
    case Kind::send:
      text += size(call.in) + fmt::format(" to rank {} with tag {}", call.peer, call.tag);
      break;
    case Kind::receive:
      text += size(call.out) + fmt::format(" from rank {} with tag {}", call.peer, call.tag);
      break;
    case Kind::exchange:
    case Kind::barrier: break;
  }
  return text + fmt::format(" for {} at {}:{}", call.purpose, call.where.file, call.where.line);
}

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
void Communicator::copy_own(std::byte* to, const std::byte* from, std::size_t bytes) {
  copy_bytes(to, from, bytes);
}

Pending Communicator::begin(const Call& call) {
  Checker{call, axis_, rank_, size_, takes_bf16()}.run();
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

Pending Communicator::start_all_reduce(std::string_view purpose, View x, Reduce reduce, Site where) {
  return begin(
      {.kind = Kind::all_reduce, .purpose = purpose, .in = x, .out = x, .reduce = reduce, .where = where});
}
Pending Communicator::start_all_gather(std::string_view purpose, ConstView mine, View all, Site where) {
  return begin({.kind = Kind::all_gather, .purpose = purpose, .in = mine, .out = all, .where = where});
}
Pending Communicator::start_reduce_scatter(std::string_view purpose, View all, View mine, Site where) {
  return begin({.kind = Kind::reduce_scatter, .purpose = purpose, .in = all, .out = mine, .where = where});
}
Pending Communicator::start_broadcast(std::string_view purpose, View x, int root, Site where) {
  return begin(
      {.kind = Kind::broadcast, .purpose = purpose, .in = x, .out = x, .peer = root, .where = where});
}
Pending Communicator::start_exchange(std::string_view purpose, std::span<const Outgoing> outgoing,
                                     std::span<const Incoming> incoming, Site where) {
  return begin({.kind = Kind::exchange,
                .purpose = purpose,
                .outgoing = outgoing,
                .incoming = incoming,
                .where = where});
}
Pending Communicator::start_send(std::string_view purpose, ConstView data, int peer, int tag, Site where) {
  return begin(
      {.kind = Kind::send, .purpose = purpose, .in = data, .peer = peer, .tag = tag, .where = where});
}
Pending Communicator::start_receive(std::string_view purpose, View data, int peer, int tag, Site where) {
  return begin(
      {.kind = Kind::receive, .purpose = purpose, .out = data, .peer = peer, .tag = tag, .where = where});
}

void Communicator::all_reduce(std::string_view purpose, View x, Reduce reduce, Site where) {
  start_all_reduce(purpose, x, reduce, where).wait();
}
void Communicator::all_gather(std::string_view purpose, ConstView mine, View all, Site where) {
  start_all_gather(purpose, mine, all, where).wait();
}
void Communicator::reduce_scatter(std::string_view purpose, View all, View mine, Site where) {
  start_reduce_scatter(purpose, all, mine, where).wait();
}
void Communicator::broadcast(std::string_view purpose, View x, int root, Site where) {
  start_broadcast(purpose, x, root, where).wait();
}
void Communicator::exchange(std::string_view purpose, std::span<const Outgoing> outgoing,
                            std::span<const Incoming> incoming, Site where) {
  start_exchange(purpose, outgoing, incoming, where).wait();
}
void Communicator::send(std::string_view purpose, ConstView data, int peer, int tag, Site where) {
  start_send(purpose, data, peer, tag, where).wait();
}
void Communicator::receive(std::string_view purpose, View data, int peer, int tag, Site where) {
  start_receive(purpose, data, peer, tag, where).wait();
}
void Communicator::barrier(std::string_view purpose, Site where) {
  begin({.kind = Kind::barrier, .purpose = purpose, .where = where}).wait();
}

void Communicator::open_lanes(std::span<const Lane> lanes) {
  if (size_ > 1) make_lanes(lanes);
}

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
