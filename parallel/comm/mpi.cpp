#include "parallel/comm/mpi.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <optional>

#include "parallel/comm/envelope.h"
#include "parallel/comm/mpi_engine.h"

namespace transmamba {
namespace {

using Kind = Call::Kind;
using Clock = std::chrono::steady_clock;

/// Below this an all_reduce sends everything to everyone, above it sums parts and gathers them.
constexpr std::size_t kSmallReduction = 16384;
constexpr std::int64_t kPollsBeforeYield = 50;

/// Tags of messages lie below kMaxTag; the two of collective call number i are these, and come again after
/// 2^29.
int tag_of(std::int64_t number, bool data) {
  return Communicator::kMaxTag + 2 * static_cast<int>(number % (1 << 29)) + (data ? 1 : 0);
}

/// Memory that goes to or comes from another rank.
struct Block {
  std::byte* to = nullptr;
  const std::byte* from = nullptr;
  std::size_t bytes = 0;
};

class MpiCommunicator : public Communicator {
 public:
  MpiCommunicator(std::shared_ptr<MpiEngine> engine, MPI_Comm comm, std::string axis, int rank, int size,
                  std::shared_ptr<Recorder> recorder)
      : Communicator(std::move(axis), rank, size, std::move(recorder)),
        engine_(std::move(engine)),
        comm_(comm) {
    mpi_check(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  }
  ~MpiCommunicator() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    // Messages that are still on their way need the communicator.
    if (!finalized && !engine_->error && std::uncaught_exceptions() == 0) MPI_Comm_free(&comm_);
  }

 private:
  class Waiting;
  class Collective;
  class Receive;

  std::unique_ptr<Pending::Work> start(const Call& call) override;
  std::unique_ptr<Communicator> make_split(std::string axis, const std::vector<int>& members,
                                           int split) override;

  std::shared_ptr<MpiEngine> engine_;
  MPI_Comm comm_;
  std::int64_t calls_ = 0;
};

/// Polls, lets others run, and looks at the clock.
class MpiCommunicator::Waiting : public Pending::Work, public MpiEngine::Step {
 public:
  explicit Waiting(MpiCommunicator& of, const Call& call)
      : engine_(of.engine_),
        comm_(of.comm_),
        axis_(of.axis()),
        rank_(of.rank()),
        size_(of.size()),
        call_(call) {
    call_.outgoing = {}, call_.incoming = {};
  }
  void wait() override {
    if (engine_->error) throw Error(*engine_->error);
    std::optional<Clock::time_point> start;
    for (std::int64_t polls = 0; !advance(); ++polls) {
      engine_->poll();
      // Others may need this core to get on. Not at once, though: on a busy machine a core given away comes
      // back after milliseconds.
      if (polls >= kPollsBeforeYield) sched_yield();
      if (polls % 256 != 255) continue;
      if (!start) start = Clock::now();
      if (std::chrono::duration<double>(Clock::now() - *start).count() > engine_->timeout) time_out();
    }
  }

 protected:
  virtual std::vector<int> missing() = 0;
  [[noreturn]] void time_out() {
    std::string peers;
    for (int peer : missing()) peers += fmt::format("{}{}", peers.empty() ? "" : ", ", peer);
    engine_->break_with(fmt::format("[{}] rank {} has waited {} s in {}; {}", axis_, rank_, engine_->timeout,
                                    to_string(call_),
                                    peers.empty() ? "others have not taken what it sent"
                                                  : "nothing has come from rank " + peers + " of the group"));
  }

  std::shared_ptr<MpiEngine> engine_;
  MPI_Comm comm_;
  std::string axis_;
  int rank_, size_;
  Call call_;
};

class MpiCommunicator::Collective : public MpiCommunicator::Waiting {
 public:
  Collective(MpiCommunicator& of, const Call& call)
      : Waiting(of, call), number_(of.calls_++), capacity_(Envelope::capacity(size_)) {
    const auto n = static_cast<std::size_t>(size_);
    sends_.resize(n), receives_.resize(n);
    plan(call);
    // The envelopes of all ranks lie side by side; ours among them for the comparison.
    theirs_ = Bytes(n * capacity_), ours_ = Bytes(n * capacity_);
    for_peers([&](int peer, const Block&, const Block& in) {
      envelopes_.receive(comm_, theirs_.data() + place(peer), capacity_, peer, tag_of(number_, false),
                         capacity_);
      if (in.bytes > Envelope::kAttached)
        data_.receive(comm_, in.to, in.bytes, peer, tag_of(number_, true), engine_->largest);
    });
    Envelope::pack(theirs_.data() + place(rank_), call_, number_, table_, nullptr, 0);
    for_peers([&](int peer, const Block& out, const Block&) {
      std::byte* envelope = ours_.data() + place(peer);
      const std::size_t length = Envelope::pack(envelope, call_, number_, table_, out.from, out.bytes);
      data_.send(comm_, envelope, length, peer, tag_of(number_, false), capacity_);
      if (out.bytes > Envelope::kAttached)
        data_.send(comm_, out.from, out.bytes, peer, tag_of(number_, true), engine_->largest);
    });
    if (in_parts_) engine_->steps.push_back(this);
  }
  ~Collective() override {
    std::erase(engine_->steps, this);
    if (state_ == State::done) return;
    envelopes_.give_up(), data_.give_up();
    for (Bytes* buffer : {&theirs_, &ours_, &scratch_}) engine_->graveyard.push_back(std::move(*buffer));
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
    if (state_ == State::data && data_.done()) {
      finish();
      state_ = in_parts_ ? State::gather : State::done;
    }
    if (state_ == State::gather && data_.done()) state_ = State::done;
    if (state_ == State::done && in_parts_) std::erase(engine_->steps, this);
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
        engine_->break_with(mismatch_text(axis_, 0, first.call(), r, envelope(r).call()));
    if (call_.kind != Kind::exchange) return;
    for (int from = 0; from < size_; ++from)
      for (int to = 0; to < size_; ++to) {
        const std::int64_t sent = envelope(from).table(to), expected = envelope(to).table(size_ + from);
        if (sent != expected)
          engine_->break_with(exchange_mismatch_text(axis_, from, sent, envelope(from).call(), to, expected,
                                                     envelope(to).call()));
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
      // Envelopes have been read by now, so their tag of the same messages is free for the sums.
      for_peers([&](int peer, const Block&, const Block&) {
        data_.receive(comm_, part(peer), length(peer), peer, tag_of(number_, false), engine_->largest);
      });
      for_peers([&](int peer, const Block&, const Block&) {
        data_.send(comm_, part(rank_), length(rank_), peer, tag_of(number_, false), engine_->largest);
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

  std::int64_t number_;
  std::size_t capacity_;
  State state_ = State::envelopes;
  bool in_parts_ = false;
  std::vector<Block> sends_, receives_;
  std::vector<std::int64_t> table_;
  Bytes theirs_, ours_, scratch_;
  MpiRequests envelopes_, data_;
};

class MpiCommunicator::Receive : public MpiCommunicator::Waiting {
 public:
  Receive(MpiCommunicator& of, const Call& call) : Waiting(of, call), packed_(Envelope::capacity(0)) {
    envelope_.receive(comm_, packed_.data(), packed_.size(), call.peer, call.tag, packed_.size());
    const std::size_t bytes = bytes_of(call.out);
    if (bytes > Envelope::kAttached)
      data_.receive(comm_, call.out.raw(), bytes, call.peer, call.tag, engine_->largest);
  }
  ~Receive() override {
    if (envelope_.empty() && data_.empty()) return;
    envelope_.give_up(), data_.give_up();
    engine_->graveyard.push_back(std::move(packed_));
  }
  bool advance() override {
    if (!envelope_.empty() && envelope_.done()) {
      const Envelope envelope(packed_.data());
      const std::size_t bytes = bytes_of(call_.out);
      if (envelope.bytes() != bytes ||
          envelope.fingerprint().dtype != static_cast<std::uint8_t>(call_.out.dtype()))
        engine_->break_with(mismatch_text(axis_, call_.peer, envelope.call(), rank_, to_string(call_)));
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
  if (engine_->error) throw Error(*engine_->error);
  if (call.kind == Kind::receive) return std::make_unique<Receive>(*this, call);
  if (call.kind != Kind::send) return std::make_unique<Collective>(*this, call);
  // A copy goes, for the sender may not have to wait for the receiver.
  engine_->poll();
  MpiEngine::Sent& sent = engine_->sent.emplace_back();
  const std::size_t bytes = bytes_of(call.in);
  sent.envelope = Bytes(Envelope::capacity(0));
  const std::size_t length = Envelope::pack(sent.envelope.data(), call, 0, {}, call.in.raw(), bytes);
  sent.requests.send(comm_, sent.envelope.data(), length, call.peer, call.tag, length);
  if (bytes > Envelope::kAttached) {
    sent.data = Bytes(call.in);
    sent.requests.send(comm_, sent.data.data(), bytes, call.peer, call.tag, engine_->largest);
  }
  return nullptr;
}

std::unique_ptr<Communicator> MpiCommunicator::make_split(std::string axis, const std::vector<int>& members,
                                                          int split) {
  MPI_Group all = MPI_GROUP_NULL, some = MPI_GROUP_NULL;
  MPI_Comm comm = MPI_COMM_NULL;
  mpi_check(MPI_Comm_group(comm_, &all), "MPI_Comm_group");
  mpi_check(MPI_Group_incl(all, static_cast<int>(members.size()), members.data(), &some), "MPI_Group_incl");
  mpi_check(MPI_Comm_create_group(comm_, some, split % kMaxTag, &comm), "MPI_Comm_create_group");
  MPI_Group_free(&all), MPI_Group_free(&some);
  const auto index = std::find(members.begin(), members.end(), rank()) - members.begin();
  return std::make_unique<MpiCommunicator>(engine_, comm, std::move(axis), static_cast<int>(index),
                                           static_cast<int>(members.size()), recorder_);
}

}  // namespace

std::unique_ptr<Communicator> mpi_world(std::shared_ptr<Recorder> recorder, double timeout_seconds,
                                        std::size_t largest_message) {
  int rank = 0, size = 0;
  MPI_Comm comm = MPI_COMM_NULL;
  mpi_check(MPI_Comm_dup(MPI_COMM_WORLD, &comm), "MPI_Comm_dup");
  mpi_check(MPI_Comm_rank(comm, &rank), "MPI_Comm_rank");
  mpi_check(MPI_Comm_size(comm, &size), "MPI_Comm_size");
  if (size == 1) {
    MPI_Comm_free(&comm);
    return self_communicator("world", std::move(recorder));
  }
  auto engine = std::make_shared<MpiEngine>();
  engine->timeout = timeout_seconds, engine->largest = largest_message;
  return std::make_unique<MpiCommunicator>(std::move(engine), comm, "world", rank, size, std::move(recorder));
}

}  // namespace transmamba
