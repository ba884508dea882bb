#include "parallel/comm/mpi.h"

#include <algorithm>

#include "parallel/comm/envelope.h"
#include "parallel/comm/mpi_engine.h"

namespace transmamba {
namespace {

using Kind = Call::Kind;

/// Below this an all_reduce sends everything to everyone, above it sums parts and gathers them.
constexpr std::size_t kSmallReduction = 16384;
/// A call's envelopes and data have tags of their own, as far as there are tags; then these come again. That
/// cannot mix calls up: both sides start all calls of a group in one order, and MPI keeps the order of a tag.
constexpr int kMostCallTags = 4096;

/// The sums of all_reduces in parts follow later, so they have a tag of their own and take turns.
constexpr int kSumsTag = 0;
enum class What { envelope, data };
int tag_of(const MpiEngine& engine, std::int64_t number, What what) {
  const int calls = std::min(kMostCallTags, engine.largest_tag / 2);
  return 1 + (what == What::data ? calls : 0) + static_cast<int>(number % calls);
}

/// Memory that goes to or comes from another rank.
struct Block {
  std::byte* to = nullptr;
  const std::byte* from = nullptr;
  std::size_t bytes = 0;
};

class MpiCommunicator : public Communicator {
 public:
  MpiCommunicator(MpiGroup group, std::shared_ptr<Recorder> recorder)
      : Communicator(group.axis, group.rank, group.size, std::move(recorder)),
        group_(std::make_shared<MpiGroup>(std::move(group))) {
    for (const MPI_Comm comm : {group_->messages, group_->collectives})
      mpi_check(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  }
  ~MpiCommunicator() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    // Messages that are still on their way need the communicators.
    if (!finalized && !group_->engine->error && std::uncaught_exceptions() == 0)
      MPI_Comm_free(&group_->messages), MPI_Comm_free(&group_->collectives);
  }

 private:
  class Collective;
  class Receive;

  std::unique_ptr<Pending::Work> start(const Call& call) override;
  void start_message(const Call& call);
  std::unique_ptr<BareCalls> bare() override { return bare_mpi(group_->collectives); }
  std::shared_ptr<RollCall> roll_call() override { return {group_->engine, &group_->engine->watch}; }
  std::unique_ptr<Communicator> make_split(std::string axis, const std::vector<int>& members,
                                           int split) override;

  std::shared_ptr<MpiGroup> group_;
};

class MpiCommunicator::Collective : public MpiWaiting {
 public:
  Collective(const std::shared_ptr<MpiGroup>& group, const Call& call)
      : MpiWaiting(group, call),
        number_(group->calls++),
        capacity_(Envelope::capacity(size_)),
        envelope_tag_(tag_of(engine(), number_, What::envelope)),
        envelopes_(engine()),
        data_(engine()) {
    want_.number = number_;
    engine().watch.started(group->id);
    const MPI_Comm comm = group->collectives;
    const int data_tag = tag_of(engine(), number_, What::data);
    const auto n = static_cast<std::size_t>(size_);
    sends_.resize(n), receives_.resize(n);
    plan(call);
    // The envelopes of all ranks lie side by side; ours among them for the comparison.
    theirs_ = Bytes(n * capacity_), ours_ = Bytes(n * capacity_);
    for_peers([&](int peer, const Block&, const Block& in) {
      envelopes_.receive(comm, theirs_.data() + place(peer), capacity_, peer, envelope_tag_, capacity_);
      if (in.bytes > Envelope::kAttached)
        data_.receive(comm, in.to, in.bytes, peer, data_tag, engine().largest);
    });
    Envelope::pack(theirs_.data() + place(rank_), call_, number_, table_, nullptr, 0);
    for_peers([&](int peer, const Block& out, const Block&) {
      std::byte* envelope = ours_.data() + place(peer);
      const std::size_t length = Envelope::pack(envelope, call_, number_, table_, out.from, out.bytes);
      data_.send(comm, envelope, length, peer, envelope_tag_, capacity_);
      if (out.bytes > Envelope::kAttached)
        data_.send(comm, out.from, out.bytes, peer, data_tag, engine().largest);
    });
    if (in_parts_) turn_ = group->turns++, engine().steps.push_back(this);
  }
  ~Collective() override {
    std::erase(engine().steps, this);
    if (state_ == State::done) return;
    envelopes_.give_up(), data_.give_up();
    for (Bytes* buffer : {&theirs_, &ours_, &scratch_}) engine().graveyard.push_back(std::move(*buffer));
  }

  bool advance() override {
    if (state_ == State::envelopes && envelopes_.done()) {
      compare();
      for_peers([&](int peer, const Block&, const Block& in) {
        if (in.bytes <= Envelope::kAttached)
          copy_bytes(in.to, Envelope(theirs_.data() + place(peer)).attached(), in.bytes);
      });
      state_ = State::data;
    }
    if (state_ == State::data && data_.done() && (!in_parts_ || group_->turn == turn_)) {
      finish();
      group_->turn += in_parts_;
      state_ = in_parts_ ? State::gather : State::done;
    }
    if (state_ == State::gather && data_.done()) state_ = State::done;
    if (state_ == State::done && in_parts_) std::erase(engine().steps, this);
    return state_ == State::done;
  }

 private:
  enum class State { envelopes, data, gather, done };

  std::vector<int> missing() override {
    return state_ == State::envelopes ? envelopes_.missing() : data_.missing();
  }
  std::size_t place(int rank) const { return static_cast<std::size_t>(rank) * capacity_; }
  template <class Each>
  void for_peers(const Each& each) {  // beginning with the next one, so that not all begin with rank 0
    for (int i = 1; i < size_; ++i) {
      const int peer = (rank_ + i) % size_;
      each(peer, sends_[static_cast<std::size_t>(peer)], receives_[static_cast<std::size_t>(peer)]);
    }
  }
  /// Elements [begin(r), begin(r + 1)) of an all_reduce are summed by rank r.
  std::int64_t begin(int rank) const { return call_.out.numel() * rank / size_; }

  /// Who gets what from whom.
  void plan(const Call& call) {
    const auto n = static_cast<std::size_t>(size_), me = static_cast<std::size_t>(rank_);
    const std::size_t width = static_cast<std::size_t>(size_of(call.out.dtype())), whole = bytes_of(call.out);
    std::byte* const out = call.out.raw();
    const std::byte* const in = call.in.raw();
    switch (call.kind) {
      case Kind::all_gather:
        for (std::size_t r = 0; r < n; ++r)
          sends_[r].from = in, sends_[r].bytes = bytes_of(call.in),
          receives_[r] = {out + r * bytes_of(call.in), nullptr, bytes_of(call.in)};
        break;
      case Kind::reduce_scatter:
        scratch_ = Bytes(n * whole);
        for (std::size_t r = 0; r < n; ++r)
          sends_[r] = {nullptr, in + r * whole, whole},
          receives_[r] = {scratch_.data() + r * whole, nullptr, whole};
        break;
      case Kind::all_reduce: {
        in_parts_ = whole > kSmallReduction && size_ > 2;
        const std::size_t mine =
            in_parts_ ? static_cast<std::size_t>(begin(rank_ + 1) - begin(rank_)) * width : whole;
        scratch_ = Bytes(n * mine);
        for (std::size_t r = 0; r < n; ++r) {
          const auto first = static_cast<std::size_t>(begin(static_cast<int>(r))) * width;
          const auto last = static_cast<std::size_t>(begin(static_cast<int>(r) + 1)) * width;
          sends_[r] = in_parts_ ? Block{nullptr, in + first, last - first} : Block{nullptr, in, whole};
          receives_[r] = {scratch_.data() + r * mine, nullptr, mine};
        }
        break;
      }
      case Kind::broadcast:
        if (call.peer == rank_)
          std::fill(sends_.begin(), sends_.end(), Block{nullptr, in, whole});
        else
          receives_[static_cast<std::size_t>(call.peer)] = {out, nullptr, whole};
        break;
      case Kind::exchange:
        table_.resize(2 * n);
        for (const Outgoing& message : call.outgoing) {
          const auto peer = static_cast<std::size_t>(message.peer);
          sends_[peer] = {nullptr, message.data.raw(), bytes_of(message.data)};
          table_[peer] = static_cast<std::int64_t>(bytes_of(message.data));
        }
        for (const Incoming& message : call.incoming) {
          const auto peer = static_cast<std::size_t>(message.peer);
          receives_[peer] = {message.data.raw(), nullptr, bytes_of(message.data)};
          table_[n + peer] = static_cast<std::int64_t>(bytes_of(message.data));
        }
        break;
      case Kind::send:
      case Kind::receive:
      case Kind::barrier: break;
    }
    sends_[me] = {}, receives_[me] = {};
  }

  /// All ranks see the same envelopes and so throw the same.
  void compare() {
    const auto envelope = [&](int rank) { return Envelope(theirs_.data() + place(rank)); };
    const Envelope first = envelope(0);
    for (int r = 1; r < size_; ++r)
      if (envelope(r).fingerprint() != first.fingerprint())
        engine().break_with(mismatch_text(group_->axis, 0, first.call(), r, envelope(r).call()));
    if (call_.kind != Kind::exchange) return;
    for (int from = 0; from < size_; ++from)
      for (int to = 0; to < size_; ++to) {
        const std::int64_t sent = envelope(from).table(to), expected = envelope(to).table(size_ + from);
        if (sent != expected)
          engine().break_with(exchange_mismatch_text(group_->axis, from, sent, envelope(from).call(), to,
                                                     expected, envelope(to).call()));
      }
  }

  /// Everything has come, and everything that was sent may be overwritten.
  void finish() {
    std::byte* const out = call_.out.raw();
    const std::size_t whole = bytes_of(call_.out);
    const auto width = static_cast<std::size_t>(size_of(call_.out.dtype()));
    const auto me = static_cast<std::size_t>(rank_);
    if (call_.kind == Kind::all_gather) {
      copy_bytes(out + me * bytes_of(call_.in), call_.in.raw(), bytes_of(call_.in));
    } else if (call_.kind == Kind::reduce_scatter) {
      sum_onto(out, call_.in.raw() + me * whole, whole);
    } else if (call_.kind == Kind::all_reduce && !in_parts_) {
      sum_onto(out, out, whole);
    } else if (call_.kind == Kind::all_reduce) {
      const auto part = [&](int rank) { return out + static_cast<std::size_t>(begin(rank)) * width; };
      const auto length = [&](int rank) {
        return static_cast<std::size_t>(begin(rank + 1) - begin(rank)) * width;
      };
      sum_onto(part(rank_), part(rank_), length(rank_));
      for_peers([&](int peer, const Block&, const Block&) {
        data_.receive(group_->collectives, part(peer), length(peer), peer, kSumsTag, engine().largest);
      });
      for_peers([&](int peer, const Block&, const Block&) {
        data_.send(group_->collectives, part(rank_), length(rank_), peer, kSumsTag, engine().largest);
      });
    }
  }

  /// out = the sum in the order of ranks of what came and `own`, which may be `out`.
  void sum_onto(std::byte* out, const std::byte* own, std::size_t bytes) {
    const auto count = static_cast<std::int64_t>(bytes) / size_of(call_.out.dtype());
    std::byte* const total = rank_ == 0 ? out : scratch_.data();
    if (rank_ == 0) copy_bytes(out, own, bytes);
    for (int r = 1; r < size_; ++r) {
      const std::byte* const x = r == rank_ ? own : scratch_.data() + static_cast<std::size_t>(r) * bytes;
      reduce_onto(total, x, call_.out.dtype(), count, call_.reduce);
    }
    copy_bytes(out, total, bytes);
  }

  const std::int64_t number_;
  const std::size_t capacity_;
  const int envelope_tag_;
  std::int64_t turn_ = 0;
  State state_ = State::envelopes;
  bool in_parts_ = false;
  std::vector<Block> sends_, receives_;
  std::vector<std::int64_t> table_;
  Bytes theirs_, ours_, scratch_;
  MpiRequests envelopes_, data_;
};

class MpiCommunicator::Receive : public MpiWaiting {
 public:
  Receive(const std::shared_ptr<MpiGroup>& group, const Call& call)
      : MpiWaiting(group, call), packed_(Envelope::capacity(0)), envelope_(engine()), data_(engine()) {
    want_.number = group->asked[{call.peer, call.tag}]++;
    want_.peer = group->world_ranks[static_cast<std::size_t>(call.peer)], want_.tag = call.tag;
    const MPI_Comm comm = group->messages;
    envelope_.receive(comm, packed_.data(), packed_.size(), call.peer, call.tag, packed_.size());
    const std::size_t bytes = bytes_of(call.out);
    if (bytes > Envelope::kAttached)
      data_.receive(comm, call.out.raw(), bytes, call.peer, call.tag, engine().largest);
  }
  ~Receive() override {
    if (envelope_.empty() && data_.empty()) return;
    envelope_.give_up(), data_.give_up();
    engine().graveyard.push_back(std::move(packed_));
  }
  bool advance() override {
    if (!envelope_.empty() && envelope_.done()) {
      const Envelope envelope(packed_.data());
      const std::size_t bytes = bytes_of(call_.out);
      if (envelope.bytes() != bytes ||
          envelope.fingerprint().dtype != static_cast<std::uint8_t>(call_.out.dtype()))
        engine().break_with(
            mismatch_text(group_->axis, call_.peer, envelope.call(), rank_, to_string(call_)));
      if (bytes <= Envelope::kAttached) copy_bytes(call_.out.raw(), envelope.attached(), bytes);
    }
    return envelope_.empty() && data_.done();
  }

 private:
  std::vector<int> missing() override { return {call_.peer}; }
  Bytes packed_;
  MpiRequests envelope_, data_;
};

std::unique_ptr<Pending::Work> MpiCommunicator::start(const Call& call) {
  MpiEngine& engine = *group_->engine;
  engine.check();
  if (call.kind != Kind::send && call.kind != Kind::receive)
    return std::make_unique<Collective>(group_, call);
  check(call.tag <= engine.largest_tag, axis(), "{}: this MPI library has tags of at most {}",
        to_string(call), engine.largest_tag);
  if (call.kind == Kind::receive) return std::make_unique<Receive>(group_, call);
  start_message(call);
  return nullptr;
}

/// A copy goes, for the sender may not have to wait for the receiver.
void MpiCommunicator::start_message(const Call& call) {
  MpiEngine& engine = *group_->engine;
  engine.poll();
  engine.watch.sent(group_->id, group_->world_ranks[static_cast<std::size_t>(call.peer)], call.tag);
  MpiEngine::Sent& sent = engine.sent.emplace_back(engine);
  const std::size_t bytes = bytes_of(call.in);
  sent.envelope = Bytes(Envelope::capacity(0));
  const std::size_t length = Envelope::pack(sent.envelope.data(), call, 0, {}, call.in.raw(), bytes);
  sent.requests.send(group_->messages, sent.envelope.data(), length, call.peer, call.tag, length);
  if (bytes <= Envelope::kAttached) return;
  sent.data = Bytes(call.in);
  sent.requests.send(group_->messages, sent.data.data(), bytes, call.peer, call.tag, engine.largest);
}

std::unique_ptr<Communicator> MpiCommunicator::make_split(std::string axis, const std::vector<int>& members,
                                                          int split) {
  MpiGroup made;
  made.engine = group_->engine, made.axis = std::move(axis);
  made.size = static_cast<int>(members.size());
  made.rank = static_cast<int>(std::find(members.begin(), members.end(), rank()) - members.begin());
  for (int member : members)
    made.world_ranks.push_back(group_->world_ranks[static_cast<std::size_t>(member)]);
  made.id = group_->id;
  for (const int part : {split, made.world_ranks[0]})  // hashed: unlike those of all other groups
    made.id = (made.id ^ static_cast<std::uint64_t>(part + 1)) * 0x9e3779b97f4a7c15 + (made.id >> 29);
  made.engine->watch.known(made.id);
  MPI_Group all = MPI_GROUP_NULL, some = MPI_GROUP_NULL;
  const int tag = split % std::min(kMaxTag, made.engine->largest_tag);
  mpi_check(MPI_Comm_group(group_->collectives, &all), "MPI_Comm_group");
  mpi_check(MPI_Group_incl(all, made.size, members.data(), &some), "MPI_Group_incl");
  mpi_check(MPI_Comm_create_group(group_->collectives, some, tag, &made.collectives),
            "MPI_Comm_create_group");
  MPI_Group_free(&all), MPI_Group_free(&some);
  mpi_check(MPI_Comm_dup(made.collectives, &made.messages), "MPI_Comm_dup");
  return std::make_unique<MpiCommunicator>(std::move(made), recorder_);
}

/// MPI's own bound: 2^31 - 1 for Open MPI over TCP, 2^23 - 1 for UCX, 2^19 - 1 for Intel MPI.
int largest_tag() {
  int* value = nullptr;
  int there = 0;
  mpi_check(MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, static_cast<void*>(&value), &there),
            "MPI_Comm_get_attr");
  return there ? *value : 32767;  // which MPI promises
}

}  // namespace

std::unique_ptr<Communicator> mpi_world(std::shared_ptr<Recorder> recorder, double timeout_seconds,
                                        const MpiLimits& limits, std::vector<std::string> hosts) {
  MpiGroup world;
  mpi_check(MPI_Comm_rank(MPI_COMM_WORLD, &world.rank), "MPI_Comm_rank");
  mpi_check(MPI_Comm_size(MPI_COMM_WORLD, &world.size), "MPI_Comm_size");
  if (world.size == 1) return self_communicator("world", std::move(recorder));
  mpi_check(MPI_Comm_dup(MPI_COMM_WORLD, &world.messages), "MPI_Comm_dup");
  mpi_check(MPI_Comm_dup(MPI_COMM_WORLD, &world.collectives), "MPI_Comm_dup");
  world.engine = std::make_shared<MpiEngine>(limits.patience, std::move(hosts));
  if (!recorder) recorder = std::make_shared<Recorder>();
  world.engine->recorder = recorder;
  world.engine->timeout = timeout_seconds, world.engine->largest = limits.largest_message;
  world.engine->largest_tag = std::min(limits.largest_tag, largest_tag());
  world.axis = "world", world.id = 1;
  world.engine->watch.known(world.id);
  for (int rank = 0; rank < world.size; ++rank) world.world_ranks.push_back(rank);
  return std::make_unique<MpiCommunicator>(std::move(world), std::move(recorder));
}

}  // namespace transmamba
