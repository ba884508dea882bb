// Run by mpirun, ends as its words say, for tests/launch/mpi/check: process WORD [RANK]
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "launch/process.h"

namespace transmamba {
namespace {

int act(Process& process, const std::string& word, int rank) {
  const auto world = process.world(60);
  const bool it = process.rank() == rank;
  if (word == "size") {
    if (process.rank() == 0)
      fmt::print("{} ranks, {} on this host, {} on these cores\n", process.size(), process.local_size(),
                 process.ranks_on_cores());
  } else if (word == "all_fail") {
    fail("config", "one.key: expected something else");
  } else if (word == "wait") {  // one fails while the others wait for it
    check(!it, "data", "file is broken");
    world->barrier("never");
  } else if (word == "compute") {  // one fails while the others are not in a call
    check(!it, "data", "file is broken");
    std::this_thread::sleep_for(std::chrono::seconds(60));
  } else if (word == "two_fail") {
    check(process.rank() < rank, "data", "file is broken");
    world->barrier("never");
  } else if (word == "kill") {
    if (it) kill(getpid(), SIGKILL);
    world->barrier("never");
  } else if (word == "return") {
    return 3;
  }
  return 0;
}

}  // namespace
}  // namespace transmamba

int main(int argc, char** argv) {
  return transmamba::run_command([&](transmamba::Process& process) {
    return transmamba::act(process, argc > 1 ? argv[1] : "", argc > 2 ? std::atoi(argv[2]) : 0);
  });
}
