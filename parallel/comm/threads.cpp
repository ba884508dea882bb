// How it works: start() copies what a rank gives into a slot that all members of the group share, and
// returns. wait() blocks until every member has given its part and then computes this rank's result from the
// copies. So no rank touches another one's buffers, start() never blocks, and a call needs one meeting only.
#include "parallel/comm/threads.h"

#include <algorithm>
#include <array>
#include <condition_variable>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <tuple>
#include <unordered_map>

#include "parallel/comm/backend.h"

namespace transmamba {
namespace {

using Kind = Call::Kind;
using Lock = std::unique_lock<std::mutex>;

/// What one rank gave to a collective call.
struct Part {
  bool given = false;
  Call call;
  Fingerprint fingerprint;
  Bytes data;                   // of all but exchange
  std::map<int, Bytes> sends;   // of exchange, by rank of the group
  std::map<int, View> expects;  // its views are only measured by others
};

/// One collective call of a group.
struct Slot {
  explicit Slot(int size) : parts(static_cast<std::size_t>(size)), missing(size) {}
  std::vector<Part> parts;
  int missing;
  std::once_flag reduced;
  Bytes sum;  // of all_reduce: computed by whoever comes first
};

struct Group {
  std::string axis;
  std::vector<int> world_ranks;
  std::unordered_map<std::int64_t, std::shared_ptr<Slot>>
      open;  // by the number of the call; not yet complete
};

struct Message {
  Bytes data;
  Call call;
};
/// From one rank of a group to another with one tag: the nth message is for the nth receive.
struct Box {
  std::int64_t sent = 0, asked = 0;
  std::map<std::int64_t, Message> messages;
};

class World {
 public:
  explicit World(int ranks) : threads_(static_cast<std::size_t>(ranks)) {}

  void deposit(Group& group, int rank, Part part, std::int64_t number, std::shared_ptr<Slot>& slot);
  void await(const Group& group, int rank, const Slot& slot);
  void post(const Group& group, int from, const Call& call);
  std::int64_t ask(const Group& group, int rank, const Call& call);
  Message receive(const Group& group, int rank, const Call& call, std::int64_t number);
  std::shared_ptr<Group> subgroup(const Group& parent, int split, const std::string& axis,
                                  const std::vector<int>& members);
  void end(int rank, const std::string* error);
  void rethrow() const {
    if (error_) throw Error(*error_);
  }

 private:
  struct Thread {
    std::condition_variable wake;
    const void* waits_for = nullptr;                  // a slot or a box
    const std::function<bool()>* is_there = nullptr;  // whether what it waits for has come
    std::string_view axis;
    const Call* call = nullptr;
    bool ended = false;
  };
  using BoxKey = std::tuple<const Group*, int, int, int>;  // from, to, tag

  Thread& thread(const Group& group, int rank) {
    return threads_[static_cast<std::size_t>(group.world_ranks[static_cast<std::size_t>(rank)])];
  }
  void block(Lock& lock, const Group& group, int rank, const Call& call, const void* what,
             const std::function<bool()>& is_there);
  void poison(const std::string& error);
  void find_deadlock();
  void throw_if_poisoned() const { rethrow(); }

  std::mutex mutex_;
  std::vector<Thread> threads_;
  std::optional<std::string> error_;  // the first: from then on every call throws it
  std::map<BoxKey, Box> boxes_;
  std::map<std::tuple<const Group*, int, int>, std::shared_ptr<Group>>
      splits_;  // kept: boxes_ knows groups by address
};

/// Empty where the two parts fit each other.
std::string difference(const Group& group, int a, const Part& x, int b, const Part& y) {
  if (x.fingerprint != y.fingerprint)
    return mismatch_text(group.axis, a, to_string(x.call), b, to_string(y.call));
  const auto one_way = [&](int from, const Part& sender, int to, const Part& receiver) -> std::string {
    const auto sent = sender.sends.find(to);
    const auto expected = receiver.expects.find(from);
    const auto sent_bytes = sent == sender.sends.end() ? 0 : sent->second.size();
    const auto expected_bytes = expected == receiver.expects.end() ? 0 : bytes_of(expected->second);
    if (sent_bytes == expected_bytes) return "";
    return exchange_mismatch_text(group.axis, from, static_cast<std::int64_t>(sent_bytes),
                                  to_string(sender.call), to, static_cast<std::int64_t>(expected_bytes),
                                  to_string(receiver.call));
  };
  const std::string there = one_way(a, x, b, y);
  return there.empty() ? one_way(b, y, a, x) : there;
}

void World::deposit(Group& group, int rank, Part part, std::int64_t number, std::shared_ptr<Slot>& slot) {
  Lock lock(mutex_);
  throw_if_poisoned();
  const int size = static_cast<int>(group.world_ranks.size());
  auto& shared = group.open[number];
  if (!shared) shared = std::make_shared<Slot>(size);
  slot = shared;
  for (int other = 0; other < size; ++other) {
    const Part& theirs = slot->parts[static_cast<std::size_t>(other)];
    if (!theirs.given) continue;
    const std::string text = difference(group, rank, part, other, theirs);
    if (text.empty()) continue;
    poison(text);
    throw Error(text);
  }
  part.given = true;
  slot->parts[static_cast<std::size_t>(rank)] = std::move(part);
  if (--slot->missing > 0) return;
  group.open.erase(number);
  std::vector<Thread*> waiting;
  for (int other = 0; other < size; ++other)
    if (thread(group, other).waits_for == slot.get()) waiting.push_back(&thread(group, other));
  lock.unlock();  // so that those who wake find it free
  for (Thread* other : waiting) other->wake.notify_one();
}

void World::await(const Group& group, int rank, const Slot& slot) {
  Lock lock(mutex_);
  block(lock, group, rank, slot.parts[static_cast<std::size_t>(rank)].call, &slot,
        [&] { return slot.missing == 0; });
}

void World::post(const Group& group, int from, const Call& call) {
  Message message{Bytes(call.in), call};
  Lock lock(mutex_);
  throw_if_poisoned();
  Box& box = boxes_[{&group, from, call.peer, call.tag}];
  box.messages.emplace(box.sent++, std::move(message));
  Thread& receiver = thread(group, call.peer);
  const bool waits = receiver.waits_for == &box;
  lock.unlock();
  if (waits) receiver.wake.notify_one();
}

std::int64_t World::ask(const Group& group, int rank, const Call& call) {
  const Lock lock(mutex_);
  throw_if_poisoned();
  return boxes_[{&group, call.peer, rank, call.tag}].asked++;
}

Message World::receive(const Group& group, int rank, const Call& call, std::int64_t number) {
  Lock lock(mutex_);
  Box& box = boxes_[{&group, call.peer, rank, call.tag}];  // a map's elements stay where they are
  block(lock, group, rank, call, &box, [&] { return box.messages.contains(number); });
  Message message = std::move(box.messages.extract(number).mapped());
  if (message.data.size() == bytes_of(call.out) && message.call.in.dtype() == call.out.dtype())
    return message;
  poison(mismatch_text(group.axis, call.peer, to_string(message.call), rank, to_string(call)));
  throw Error(*error_);
}

void World::block(Lock& lock, const Group& group, int rank, const Call& call, const void* what,
                  const std::function<bool()>& is_there) {
  throw_if_poisoned();
  if (is_there()) return;
  Thread& me = thread(group, rank);
  me.waits_for = what, me.is_there = &is_there, me.axis = group.axis, me.call = &call;
  find_deadlock();
  me.wake.wait(lock, [&] { return error_ || is_there(); });
  me.waits_for = nullptr, me.is_there = nullptr, me.call = nullptr;
  throw_if_poisoned();
}

/// Only what other ranks do can end a wait. So when all that have not ended wait for what is not there,
/// nothing will ever come.
void World::find_deadlock() {
  std::string stuck, ended;
  for (std::size_t rank = 0; rank < threads_.size(); ++rank)
    if (!threads_[rank].ended && (!threads_[rank].is_there || (*threads_[rank].is_there)())) return;
  for (std::size_t rank = 0; rank < threads_.size(); ++rank) {
    const Thread& t = threads_[rank];
    if (t.ended)
      ended += fmt::format("; rank {} has ended", rank);
    else
      stuck += fmt::format("{}rank {} in {} of group {}", stuck.empty() ? "" : "; ", rank, to_string(*t.call),
                           t.axis);
  }
  if (!stuck.empty())
    poison(fmt::format("[threads] the ranks wait for each other for ever: {}{}", stuck, ended));
}

void World::poison(const std::string& error) {
  if (error_) return;
  error_ = error;
  for (Thread& t : threads_) t.wake.notify_one();
}

void World::end(int rank, const std::string* error) {
  const Lock lock(mutex_);
  threads_[static_cast<std::size_t>(rank)].ended = true;
  if (error) poison(fmt::format("rank {}: {}", rank, *error));
  if (!error_) find_deadlock();
}

std::shared_ptr<Group> World::subgroup(const Group& parent, int split, const std::string& axis,
                                       const std::vector<int>& members) {
  const Lock lock(mutex_);
  auto& group = splits_[{&parent, split, members[0]}];
  if (!group) {
    group = std::make_shared<Group>();
    group->axis = axis;
    for (int member : members)
      group->world_ranks.push_back(parent.world_ranks[static_cast<std::size_t>(member)]);
  }
  return group;
}

/// All calls of one rank in one group.
class ThreadsCommunicator : public Communicator {
 public:
  ThreadsCommunicator(World& world, std::shared_ptr<Group> group, int rank,
                      std::shared_ptr<Recorder> recorder)
      : Communicator(group->axis, rank, static_cast<int>(group->world_ranks.size()), std::move(recorder)),
        world_(world),
        group_(std::move(group)) {}

 private:
  class Collective;
  class Receive;

  std::unique_ptr<Pending::Work> start(const Call& call) override;
  std::unique_ptr<Communicator> make_split(std::string axis, const std::vector<int>& members,
                                           int split) override {
    const auto index = std::find(members.begin(), members.end(), rank()) - members.begin();
    return std::make_unique<ThreadsCommunicator>(world_, world_.subgroup(*group_, split, axis, members),
                                                 static_cast<int>(index), recorder_);
  }

  World& world_;
  std::shared_ptr<Group> group_;
  std::int64_t calls_ = 0;
};

class ThreadsCommunicator::Collective : public Pending::Work {
 public:
  Collective(ThreadsCommunicator& of, const Call& call)
      : world_(of.world_), group_(of.group_), rank_(of.rank()) {
    Part part;
    part.call = call, part.fingerprint = fingerprint_of(call, of.calls_);
    if (call.kind == Kind::exchange) {
      for (const Outgoing& message : call.outgoing) part.sends.emplace(message.peer, Bytes(message.data));
      for (const Incoming& message : call.incoming) part.expects.emplace(message.peer, message.data);
    } else if (call.kind != Kind::broadcast || call.peer == rank_) {
      part.data = Bytes(call.in);
    }
    part.call.outgoing = {}, part.call.incoming = {};
    world_.deposit(*group_, rank_, std::move(part), of.calls_++, slot_);
  }

  void wait() override {
    world_.await(*group_, rank_, *slot_);
    // From here on nobody writes to the slot, so it is read without the lock.
    Slot& slot = *slot_;
    const Part& mine = slot.parts[static_cast<std::size_t>(rank_)];
    const Call& call = mine.call;
    std::byte* out = call.out.raw();
    const std::size_t size = bytes_of(call.out);
    switch (call.kind) {
      case Kind::all_reduce:
        std::call_once(slot.reduced, [&] { slot.sum = reduced(call, 0, call.out.numel()); });
        return copy_bytes(out, slot.sum.data(), size);
      case Kind::reduce_scatter: {
        const Bytes sum = reduced(call, rank_ * call.out.numel(), call.out.numel());
        return copy_bytes(out, sum.data(), size);
      }
      case Kind::all_gather:
        for (const Part& part : slot.parts) {
          copy_bytes(out, part.data.data(), part.data.size());
          out += part.data.size();
        }
        return;
      case Kind::broadcast:
        return copy_bytes(out, slot.parts[static_cast<std::size_t>(call.peer)].data.data(), size);
      case Kind::exchange:
        for (const auto& [peer, view] : mine.expects)
          copy_bytes(view.raw(), slot.parts[static_cast<std::size_t>(peer)].sends.at(rank_).data(),
                     bytes_of(view));
        return;
      case Kind::send:
      case Kind::receive:
      case Kind::barrier: return;
    }
  }

 private:
  /// The sum over the ranks of elements [begin, begin + count).
  Bytes reduced(const Call& call, std::int64_t begin, std::int64_t count) const {
    const std::int64_t width = size_of(call.out.dtype());
    Bytes sum(static_cast<std::size_t>(count * width));
    const auto& parts = slot_->parts;
    copy_bytes(sum.data(), parts[0].data.data() + begin * width, sum.size());
    for (std::size_t rank = 1; rank < parts.size(); ++rank)
      reduce_onto(sum.data(), parts[rank].data.data() + begin * width, call.out.dtype(), count, call.reduce);
    return sum;
  }

  World& world_;
  std::shared_ptr<Group> group_;
  int rank_;
  std::shared_ptr<Slot> slot_;
};

class ThreadsCommunicator::Receive : public Pending::Work {
 public:
  Receive(ThreadsCommunicator& of, const Call& call)
      : world_(of.world_), group_(of.group_), rank_(of.rank()), call_(call) {
    number_ = world_.ask(*group_, rank_, call_);
  }
  void wait() override {
    const Message message = world_.receive(*group_, rank_, call_, number_);
    copy_bytes(call_.out.raw(), message.data.data(), message.data.size());
  }

 private:
  World& world_;
  std::shared_ptr<Group> group_;
  int rank_;
  Call call_;
  std::int64_t number_ = 0;
};

std::unique_ptr<Pending::Work> ThreadsCommunicator::start(const Call& call) {
  if (call.kind == Kind::receive) return std::make_unique<Receive>(*this, call);
  if (call.kind != Kind::send) return std::make_unique<Collective>(*this, call);
  world_.post(*group_, rank(), call);
  return nullptr;
}

}  // namespace

void run_as_threads(int ranks, const std::function<void(Communicator&)>& rank_main) {
  check(ranks >= 1, "threads", "ranks: expected at least 1, got {}", ranks);
  World world(ranks);
  const auto everyone = std::make_shared<Group>();
  everyone->axis = "world";
  for (int rank = 0; rank < ranks; ++rank) everyone->world_ranks.push_back(rank);
  const auto run = [&](int rank) {
    try {
      if (ranks == 1) {
        rank_main(*self_communicator());
      } else {
        ThreadsCommunicator communicator(world, everyone, rank, nullptr);
        rank_main(communicator);
      }
      world.end(rank, nullptr);
    } catch (const std::exception& error) {
      const std::string text = error.what();
      world.end(rank, &text);
    } catch (...) {
      const std::string text = "an exception of an unknown type";
      world.end(rank, &text);
    }
  };
  {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < ranks; ++rank) threads.emplace_back(run, rank);
  }
  world.rethrow();
}

}  // namespace transmamba
