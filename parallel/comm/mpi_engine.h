// What all MPI groups of a process share, and lists of MPI requests. Only for mpi.cpp.
#pragma once

#define OMPI_SKIP_MPICXX 1
#include <mpi.h>

#include <list>
#include <optional>
#include <string>
#include <vector>

#include "parallel/comm/backend.h"

namespace transmamba {

/// Throws Error with MPI's own words.
void mpi_check(int code, const char* what);

/// Messages under way. Those longer than `largest` are cut.
class MpiRequests {
 public:
  void send(MPI_Comm comm, const std::byte* data, std::size_t bytes, int peer, int tag, std::size_t largest);
  void receive(MPI_Comm comm, std::byte* data, std::size_t bytes, int peer, int tag, std::size_t largest);
  bool done();                 ///< all of them; the list is empty then
  std::vector<int> missing();  ///< the ranks from which something is still to come
  void give_up();              ///< their buffers must outlive this, where they are ours
  bool empty() const { return requests_.empty(); }

 private:
  MPI_Request* add(int peer);
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
    MpiRequests requests;
    Bytes envelope, data;
  };
  double timeout = 0;
  std::size_t largest = 0;
  std::optional<std::string> error;  ///< the first mismatch: after it nothing can be relied on
  std::vector<Step*> steps;
  std::list<Sent> sent;          ///< messages that their senders no longer wait for
  std::vector<Bytes> graveyard;  ///< buffers of calls that were given up: MPI may still use them

  [[noreturn]] void break_with(const std::string& text);
  void poll();
  ~MpiEngine();
};

}  // namespace transmamba
