// Run by mpirun, ends as its words say, for tests/launch/mpi/check: process WORD [RANK]
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "core/tensor.h"
#include "launch/process.h"

namespace transmamba {
namespace {

/// One fails as a training step does: large calls are under way, and unwinding gives their memory back.
void fail_with_pending_calls(Communicator& world, bool it) {
  Allocator memory;
  std::vector<Tensor> buckets;
  std::vector<Pending> pending;
  const int n = world.size(), me = world.rank();
  for (int i = 0; i < 4; ++i) {
    const Tensor all = buckets.emplace_back(memory, Shape{n * 1500000}, DType::f32);
    pending.push_back(
        world.start_all_gather("parameters", all.slice(0, me * 1500000, (me + 1) * 1500000), all));
    const Tensor out = buckets.emplace_back(memory, Shape{3000000}, DType::f32);
    const Tensor in = buckets.emplace_back(memory, Shape{3000000}, DType::f32);
    pending.push_back(world.start_receive("stage output", in, (me + n - 1) % n, 5));
    pending.push_back(world.start_send("stage output", out, (me + 1) % n, 5));
  }
  pending[0].wait();  // the others have begun by then
  check(!it, "data", "file is broken");
  for (Pending& call : pending) call.wait();
  world.barrier("never");
}

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
  } else if (word == "pending") {
    fail_with_pending_calls(*world, it);
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
