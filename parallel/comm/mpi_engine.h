// What all MPI groups of a process share, and lists of MPI requests. Only for mpi*.cpp.
#pragma once

#define OMPI_SKIP_MPICXX 1
#include <mpi.h>

#include <list>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "parallel/comm/backend.h"
#include "parallel/comm/mpi_watch.h"

namespace transmamba {

/// Throws Error with MPI's own words.
void mpi_check(int code, const char* what);

struct MpiEngine;

/// Messages under way. Those longer than `largest` are cut. What fails breaks the engine.
class MpiRequests {
 public:
  explicit MpiRequests(MpiEngine& engine) : engine_(&engine) {}
  void send(MPI_Comm comm, const std::byte* data, std::size_t bytes, int peer, int tag, std::size_t largest);
  void receive(MPI_Comm comm, std::byte* data, std::size_t bytes, int peer, int tag, std::size_t largest);
  bool done();                 ///< all of them; the list is empty then
  std::vector<int> missing();  ///< the ranks from which something is still to come
  void give_up();              ///< their buffers must stay: Allocator::keep_all(), the graveyard
  bool empty() const { return requests_.empty(); }

 private:
  MPI_Request* add(int peer);
  void check(int code, const char* what) const;
  MpiEngine* engine_;
  std::vector<MPI_Request> requests_;
  std::vector<int> peers_;  // -1 of sends
};

struct MpiEngine {
  class Step {  ///< a call that has more to send once something has come, whatever its rank waits for then
   public:
    virtual ~Step() = default;
    virtual bool advance() = 0;  ///< true when done
  };
  struct Sent {
    explicit Sent(MpiEngine& engine) : requests(engine) {}
    MpiRequests requests;
    Bytes envelope, data;
  };
  double timeout = 0;
  std::size_t largest = 0;
  int largest_tag = 0;
  MpiWatch watch;
  std::optional<std::string> error;    ///< the first failure: after it nothing can be relied on
  bool is_lost = false;                ///< it is that of other ranks, or of the network: LostRank
  std::shared_ptr<Recorder> recorder;  ///< knows the step
  std::vector<Step*> steps;
  std::list<Sent> sent;          ///< messages that their senders no longer wait for
  std::vector<Bytes> graveyard;  ///< buffers of calls that were given up: MPI may still use them

  MpiEngine(double patience, std::vector<std::string> hosts) : watch(patience, std::move(hosts)) {}
  ~MpiEngine();
  MpiEngine(const MpiEngine&) = delete;
  MpiEngine& operator=(const MpiEngine&) = delete;
  [[noreturn]] void break_with(const std::string& text, bool is_lost_rank = false);
  void check() const;  ///< throws where it is broken
  void poll();
};

/// One rank's view of a group. Calls under way keep it.
struct MpiGroup {
  std::shared_ptr<MpiEngine> engine;
  std::string axis;
  int rank = 0, size = 0;
  std::uint64_t id = 0;          ///< the same on all its ranks
  std::vector<int> world_ranks;  ///< of its members
  MPI_Comm messages = MPI_COMM_NULL, collectives = MPI_COMM_NULL;
  std::int64_t calls = 0;            ///< collective ones that were started
  std::int64_t turns = 0, turn = 0;  ///< of all_reduces in parts: started, and whose sums may go next
  std::map<std::pair<int, int>, std::int64_t> asked;  ///< messages, by peer and tag
};

/// A wait that polls, lets others run, and looks at the clock.
class MpiWaiting : public Pending::Work, public MpiEngine::Step {
 public:
  MpiWaiting(std::shared_ptr<MpiGroup> group, const Call& call);
  void wait() override;
  bool poll() override;

 protected:
  virtual std::vector<int> missing() = 0;  ///< ranks of the group that are waited for
  MpiEngine& engine() const { return *group_->engine; }
  const std::shared_ptr<MpiGroup> group_;
  const int rank_, size_;
  Call call_;
  MpiWant want_;

 private:
  void look(std::int64_t wait, double seconds);
  Place place() const;  ///< step, group and call
};

/// MPI's own calls among the ranks of `of`, on a duplicate of it.
std::unique_ptr<BareCalls> bare_mpi(MPI_Comm of);

}  // namespace transmamba
