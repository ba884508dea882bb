// Finds out that all ranks wait for each other, across groups. Only for mpi.cpp and mpi_engine.
//
// A rank whose wait has become long tells all others what it waits for (want). One that waits long itself and
// has not made its side of that call answers (lack): until my wait ends, yours cannot. The first rank then
// tells all of one such answer (claim). When every rank has claimed, each naming another's present wait, none
// of these waits can be the first to end, however slow ranks and networks are: that is proven, not guessed
// from times. A rank that computes says nothing, so nothing follows.
//
// A rank whose time is nearly over asks all where they are (ask). Those in a wait say it (here); who says
// nothing is in no call.
#pragma once

#define OMPI_SKIP_MPICXX 1
#include <mpi.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "parallel/comm/roll_call.h"

namespace transmamba {

/// What a wait is for: call `number` of a group, or with `peer` >= 0 message `number` from that rank of the
/// world with `tag`.
struct MpiWant {
  std::uint64_t group = 0;  ///< the same on all its ranks
  std::int64_t number = 0;
  std::int32_t peer = -1, tag = 0;
};

class MpiWatch : public RollCall {
 public:
  /// A collective call of all processes. Waits of more than `patience` seconds are long. `hosts` are those of
  /// the ranks, where they are known.
  explicit MpiWatch(double patience, std::vector<std::string> hosts = {});
  ~MpiWatch() override;
  MpiWatch(const MpiWatch&) = delete;
  MpiWatch& operator=(const MpiWatch&) = delete;

  void known(std::uint64_t group) { started_[group]; }      ///< that this rank is in it
  void started(std::uint64_t group) { ++started_[group]; }  ///< this rank's next collective call
  void sent(std::uint64_t group, int to, int tag) { ++sent_[{group, to, tag}]; }
  std::int64_t new_wait() override { return ++waits_; }
  /// To be called now and then in wait `wait`, which is `seconds` old. Says in what call each rank is once
  /// none of them can go on; "" otherwise. `call` describes this rank's.
  std::string look(std::int64_t wait, double seconds, const MpiWant& want,
                   const std::function<Place()>& call);
  /// In waits without look(), which are for other than calls of MPI.
  void listen(const std::function<Place()>& place) override { hear(false, place); }
  void ask(std::int64_t wait) override;
  bool all_have_answered() const override;
  std::string who_is_where(const Place& mine) const override;

 private:
  struct Word;
  struct Claim {
    std::int64_t wait = -1;       // that cannot end
    int rank = -1;                // before this rank's
    std::int64_t rank_wait = -1;  // wait of this number
  };
  struct Rank {
    std::int64_t wait = -1;  // the last long one
    MpiWant want;
    Place place;
    Claim claim;
    std::int64_t lacks = -1;    // its wait in which it has answered this rank's present want
    std::optional<Place> here;  // its answer to this rank's ask
  };
  struct Saying {
    std::vector<MPI_Request> requests;
    std::vector<std::byte> bytes;
  };

  void say(const Word& word, const std::string& text, int to);  // -1: all
  void hear(bool in_long_wait, const std::function<Place()>& call);
  void answer(int rank);
  bool still(const Claim& claim) const {
    return ranks_[static_cast<std::size_t>(claim.rank)].wait == claim.rank_wait;
  }
  void make_claim();
  bool proven() const;
  std::string verdict() const;

  double patience_;
  std::vector<std::string> hosts_;
  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1;
  std::int64_t waits_ = 0, asked_ = 0;
  std::map<std::uint64_t, std::int64_t> started_;                     // by group
  std::map<std::tuple<std::uint64_t, int, int>, std::int64_t> sent_;  // by group, rank of the world, tag
  std::vector<Rank> ranks_;
  std::list<Saying> sayings_;  // under way
};

}  // namespace transmamba
