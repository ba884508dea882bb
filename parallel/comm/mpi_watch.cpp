#include "parallel/comm/mpi_watch.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "parallel/comm/mpi_engine.h"

namespace transmamba {
namespace {

constexpr int kTag = 0;
constexpr std::size_t kMaxText = 600;

}  // namespace

struct MpiWatch::Word {
  enum class Kind : std::int32_t { want, lack, claim, ask, here };
  Kind kind = Kind::want;
  std::int32_t other = -1;       // of a claim
  std::int64_t wait = 0;         // the speaker's
  std::int64_t other_wait = -1;  // of a lack and here: the listener's; of a claim: that of `other`
  MpiWant want = {};             // of a want
  Place::Turn turn = {};         // of a want and here: the speaker's, whose text follows
};

MpiWatch::MpiWatch(double patience, std::vector<std::string> hosts)
    : patience_(patience), hosts_(std::move(hosts)) {
  mpi_check(MPI_Comm_dup(MPI_COMM_WORLD, &comm_), "MPI_Comm_dup");
  mpi_check(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  MPI_Comm_rank(comm_, &rank_), MPI_Comm_size(comm_, &size_);
  ranks_.resize(static_cast<std::size_t>(size_));
}

MpiWatch::~MpiWatch() {
  // Words that nobody has heard may lie about, and a later communicator could get this one's number: so it is
  // never freed, nor are words that have not left.
  static auto& left = *new std::list<std::list<Saying>>;
  left.push_back(std::move(sayings_));
}

std::string MpiWatch::look(std::int64_t wait, double seconds, const MpiWant& want,
                           const std::function<Place()>& call) {
  Rank& me = ranks_[static_cast<std::size_t>(rank_)];
  hear(me.wait == wait, call);
  if (seconds < patience_) return "";
  if (me.wait != wait) {
    me.wait = wait, me.want = want, me.place = call();
    me.place.text.resize(std::min(me.place.text.size(), kMaxText));
    for (Rank& rank : ranks_) rank.lacks = -1;
    say({.kind = Word::Kind::want, .wait = wait, .want = want, .turn = me.place.turn}, me.place.text, -1);
    for (int rank = 0; rank < size_; ++rank) answer(rank);
  }
  make_claim();
  return proven() ? verdict() : "";
}

void MpiWatch::say(const Word& word, const std::string& text, int to) {
  std::erase_if(sayings_, [](Saying& one) {
    int done = 0;
    mpi_check(
        MPI_Testall(static_cast<int>(one.requests.size()), one.requests.data(), &done, MPI_STATUSES_IGNORE),
        "MPI_Testall");
    return done != 0;
  });
  Saying& saying = sayings_.emplace_back();
  saying.bytes.resize(sizeof word + text.size());
  std::memcpy(saying.bytes.data(), &word, sizeof word);
  std::memcpy(saying.bytes.data() + sizeof word, text.data(), text.size());
  saying.requests.reserve(static_cast<std::size_t>(size_));
  for (int peer = 0; peer < size_; ++peer)
    if (peer != rank_ && (to < 0 || peer == to))
      mpi_check(MPI_Isend(saying.bytes.data(), static_cast<int>(saying.bytes.size()), MPI_BYTE, peer, kTag,
                          comm_, &saying.requests.emplace_back(MPI_REQUEST_NULL)),
                "MPI_Isend");
}

void MpiWatch::hear(bool in_long_wait, const std::function<Place()>& call) {
  for (;;) {
    int there = 0, count = 0;
    MPI_Status status;
    mpi_check(MPI_Iprobe(MPI_ANY_SOURCE, kTag, comm_, &there, &status), "MPI_Iprobe");
    if (!there) return;
    MPI_Get_count(&status, MPI_BYTE, &count);
    std::vector<char> bytes(static_cast<std::size_t>(count));
    const int source = status.MPI_SOURCE;
    mpi_check(MPI_Recv(bytes.data(), count, MPI_BYTE, source, kTag, comm_, MPI_STATUS_IGNORE), "MPI_Recv");
    Word word;
    std::memcpy(&word, bytes.data(), sizeof word);
    Rank& from = ranks_[static_cast<std::size_t>(source)];
    const auto place = [&] { return Place{{bytes.begin() + sizeof word, bytes.end()}, word.turn}; };
    switch (word.kind) {
      case Word::Kind::want:
        from.wait = word.wait, from.want = word.want, from.place = place();
        if (in_long_wait) answer(source);
        break;
      case Word::Kind::lack:
        if (word.other_wait == ranks_[static_cast<std::size_t>(rank_)].wait) from.lacks = word.wait;
        break;
      case Word::Kind::claim: from.claim = {word.wait, word.other, word.other_wait}; break;
      case Word::Kind::ask: {
        const Place mine = call();
        say({.kind = Word::Kind::here, .other_wait = word.wait, .turn = mine.turn},
            mine.text.substr(0, kMaxText), source);
        break;
      }
      case Word::Kind::here:
        if (word.other_wait == asked_) from.here = place();
        break;
    }
  }
}

/// Only in a long wait: it is what the answer is about.
void MpiWatch::answer(int rank) {
  const Rank& other = ranks_[static_cast<std::size_t>(rank)];
  if (rank == rank_ || other.wait < 0) return;
  const MpiWant& want = other.want;
  std::int64_t made = 0;
  if (want.peer >= 0) {
    if (want.peer != rank_) return;
    if (const auto found = sent_.find({want.group, rank, want.tag}); found != sent_.end())
      made = found->second;
  } else {
    const auto found = started_.find(want.group);
    if (found == started_.end()) return;  // not a rank of that group
    made = found->second;
  }
  if (made > want.number) return;
  say({.kind = Word::Kind::lack,
       .wait = ranks_[static_cast<std::size_t>(rank_)].wait,
       .other_wait = other.wait},
      "", rank);
}

void MpiWatch::make_claim() {
  Rank& me = ranks_[static_cast<std::size_t>(rank_)];
  if (me.claim.wait == me.wait && still(me.claim)) return;
  for (int rank = 0; rank < size_; ++rank) {
    const Claim claim = {me.wait, rank, ranks_[static_cast<std::size_t>(rank)].lacks};
    if (rank == rank_ || claim.rank_wait < 0 || !still(claim)) continue;
    me.claim = claim;
    return say({.kind = Word::Kind::claim, .other = rank, .wait = me.wait, .other_wait = claim.rank_wait}, "",
               -1);
  }
}

bool MpiWatch::proven() const {
  return std::all_of(ranks_.begin(), ranks_.end(), [&](const Rank& rank) {
    return rank.wait >= 0 && rank.claim.wait == rank.wait && still(rank.claim);
  });
}

void MpiWatch::ask(std::int64_t wait) {
  if (asked_ == wait) return;
  asked_ = wait;
  for (Rank& rank : ranks_) rank.here.reset();
  say({.kind = Word::Kind::ask, .wait = wait}, "", -1);
}

bool MpiWatch::all_have_answered() const {
  return std::all_of(ranks_.begin(), ranks_.end(), [&](const Rank& rank) {
    return &rank == &ranks_[static_cast<std::size_t>(rank_)] || rank.here;
  });
}

std::string MpiWatch::who_is_where(const Place& mine) const {
  std::vector<std::optional<Place>> places;
  for (const Rank& rank : ranks_) places.push_back(rank.here);
  places[static_cast<std::size_t>(rank_)] = mine;
  return transmamba::who_is_where(places, hosts_);
}

std::string MpiWatch::verdict() const {
  std::vector<std::optional<Place>> places;
  for (const Rank& rank : ranks_) places.emplace_back(rank.place);
  return "[mpi] the ranks wait for each other for ever:" + transmamba::who_is_where(places, hosts_);
}

}  // namespace transmamba
