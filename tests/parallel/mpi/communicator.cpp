// Run by mpirun: communicator contract     the contract tests over MPI
//                communicator mismatch     calls that do not fit: every rank's Error names both
//                communicator timeout      a rank that does not come is named
//                communicator told         a rank that is told to end, and waits, says where
//                communicator gpu_wait     ranks that wait for their GPUs ask and answer
//                communicator lost         a failure that only a destructor has seen is not forgotten
//                communicator deadlock     ranks that wait for each other for ever say so within seconds
//                communicator slow         ranks that wait for slow ones are left alone
//                communicator latency      prints the time of small calls
// Ends with 1 on the first failure.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "launch/process.h"
#include "parallel/comm/agree.h"
#include "parallel/comm/mpi.h"
#include "parallel/comm/roll_call.h"
#include "tests/parallel/communicator_contract.h"

namespace transmamba {
namespace {

template <class T>
View view(std::vector<T>& x) {
  return {reinterpret_cast<std::byte*>(x.data()), dtype_of<T>(), {static_cast<std::int64_t>(x.size())}};
}

void contract(Communicator& world, std::string_view but = "") {
  for (const ContractTest& test : contract_tests()) {
    if (test.name == but) continue;
    test.run(world);
    world.barrier("between tests");
    if (world.rank() == 0) fmt::print("{}: ok\n", test.name);
  }
}

template <class Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

void expect_parts(const std::string& text, std::initializer_list<const char*> parts) {
  for (const char* part : parts)
    check(text.find(part) != std::string::npos, "contract", "expected \"{}\" in: {}", part, text);
}

/// Each on a communicator of its own, for a mismatch breaks it for good.
void mismatch(const Process& process) {
  const auto fresh = [] { return mpi_world(nullptr, 20); };
  const int rank = process.rank(), size = process.size();
  const bool odd = rank == size - 1;
  std::vector<float> x(100000), y(100000);
  {
    const auto world = fresh();
    const std::string kinds = error_of([&] {
      if (odd)
        world->barrier("rest");
      else
        world->all_reduce("gradients", view(x));
    });
    expect_parts(kinds,
                 {"rank 0 all_reduce of 400000 bytes (100000 float32) for gradients at tests/parallel/mpi/",
                  "barrier for rest at tests/parallel/mpi/communicator.cpp:"});
    check(error_of([&] { world->barrier("later"); }) == kinds, "contract",
          "a broken group is to stay broken");
  }
  {
    const auto world = fresh();
    expect_parts(error_of([&] { world->broadcast("x", view(x).slice(0, 0, odd ? 100000 : 5), 0); }),
                 {"broadcast of 20 bytes", "broadcast of 400000 bytes"});
  }
  {
    const auto world = fresh();
    const auto group = world->split("dp", 0, -rank);
    expect_parts(error_of([&] {
                   group->all_gather(odd ? "loss" : "norm", view(x).slice(0, 0, 1),
                                     view(y).slice(0, 0, size));
                 }),
                 {"[dp]", "for loss", "for norm"});
  }
  {
    const auto world = fresh();
    const int other = rank == 0 ? 1 : 0;
    const Outgoing out[] = {{other, view(x).slice(0, 0, 4)}};
    const Incoming in[] = {{other, view(y).slice(0, 0, rank == 1 ? 5 : 4)}};
    expect_parts(error_of([&] {
                   if (rank < 2)
                     world->exchange("uneven", out, in);
                   else
                     world->exchange("uneven", {}, {});
                 }),
                 {"rank 0 sends 16 bytes to rank 1", "expects 20 bytes"});
  }
  {
    const auto world = fresh();
    if (rank == 0) world->send("m", view(x), 1, 3);
    if (rank == 1)
      expect_parts(error_of([&] { world->receive("m", view(y).slice(0, 0, 2), 0, 3); }),
                   {"send of 400000 bytes", "receive of 8 bytes"});
  }
}

void timeout() {
  const auto world = mpi_world(nullptr, 0.5, {}, {"h1", "h2", "h1"});
  world->recorder().set_step(7);
  std::vector<float> x(1);
  if (world->rank() == 1) {
    std::this_thread::sleep_for(std::chrono::seconds(2));
  } else {
    expect_parts(
        error_of([&] { world->all_reduce("loss", view(x)); }),
        {"s in all_reduce of 4 bytes (1 float32) for loss at tests/parallel/mpi/",
         "and parallel.timeout is 0.5; nothing has come from rank 1 of the group\n  rank 1 on h2 is in no "
         "call and does not answer",
         world->rank() == 0 ? "\n  rank 2 on h1 in step 7: all_reduce of 4 bytes"
                            : "\n  rank 0 on h1 in step 7: all_reduce of 4 bytes",
         "of group world, number 1"});
  }
}

/// A launcher tells all to end while rank 1 is in no call. Words before that, and of short calls, are none.
void told() {
  const auto world = mpi_world(nullptr, 20);
  world->recorder().set_step(7);
  bool is_told = false;
  std::vector<std::string> said;
  LastWords last_words(
      fmt::format("rank {}", world->rank()), [&] { return is_told; },
      [&](const std::string& text) { said.push_back(text); }, 0.4);
  world->recorder().set_last_words(&last_words);
  std::vector<float> x(1);
  const auto wait_for_rank_1 = [&](double seconds) {
    if (world->rank() == 1) std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
    world->all_reduce("loss", view(x));
  };
  wait_for_rank_1(1);
  is_told = true;
  for (int i = 0; i < 100; ++i) wait_for_rank_1(0.005);
  check(said.empty(), "contract", "expected ranks that go on to say nothing, got {}", fmt::join(said, "; "));
  for (int i = 0; i < 2; ++i) wait_for_rank_1(1.5);
  world->recorder().set_last_words(nullptr);
  if (world->rank() == 1) return;
  check(said.size() == 1, "contract", "expected one line, got {}: {}", said.size(), fmt::join(said, "; "));
  expect_parts(said[0], {" has waited ", " s in step 7: all_reduce of 4 bytes (1 float32) for loss at tests/",
                         " of group world, number 102, and is told to end"});
}

/// Rank 0 waits for a GPU, whose calls are made up here, rank 2 for a call of MPI, and rank 1 comes to
/// neither.
void gpu_wait() {
  const auto world = mpi_world(nullptr, 1.5);
  world->recorder().set_step(7);
  std::vector<float> x(4);
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  if (world->rank() == 0) {
    GpuWaits waits;
    waits.belong_to(*world), waits.set_timeout(1.5);
    const Call keys{.kind = Call::Kind::all_gather, .purpose = "keys", .in = view(x), .where = {"k.cpp", 3}},
        sums{.kind = Call::Kind::all_reduce, .purpose = "sums", .out = view(x), .where = {"s.cpp", 5}};
    const auto under_way = [&] { return std::vector<GpuCall>{{&sums, "dp", 4, 31}, {&keys, "cp", 12, 30}}; };
    std::string text;
    while (elapsed() < 1.8) {
      const double seconds = elapsed();
      const std::string said = waits.look(seconds, under_way);
      if (text.empty() && !said.empty()) {
        text = said;
        check(seconds > 0.75 && seconds < 1.5, "contract", "rank 0 said after {} s: {}", seconds, text);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    expect_parts(
        text,
        {"[cp] rank 0 has waited ",
         " s in all_gather of 16 bytes (4 float32) for keys at k.cpp:3, and "
         "parallel.timeout is 1.5; its GPU has not ended it\n  rank 1 is in no call and does not answer",
         "\n  rank 0 in step 7: all_gather of 16 bytes (4 float32) for keys at k.cpp:3 of group cp, "
         "number 12 on its GPU, before all_reduce of 16 bytes (4 float32) for sums at s.cpp:5 of group "
         "dp, number 4\n  rank 2 in step 7: all_reduce of 16 bytes (4 float32) for loss at tests/",
         "of group world, number 1"});
  } else if (world->rank() == 1) {
    std::this_thread::sleep_for(std::chrono::seconds(3));
  } else {
    expect_parts(error_of([&] { world->all_reduce("loss", view(x)); }),
                 {"nothing has come from rank 0, 1 of the group\n  rank 1 is in no call and does not answer",
                  "\n  rank 0 in step 7: all_gather of 16 bytes (4 float32) for keys at k.cpp:3 of group cp, "
                  "number 12 on its GPU"});
  }
}

/// Message b is taken for the data of a, which is too long for it: an error of MPI's that nobody waits for.
void lost() {
  const auto world = mpi_world(nullptr, 5);
  std::vector<float> x(750), y(2);  // longer than what an envelope takes
  if (world->rank() == 0) {
    world->send("a", view(x), 1, 3);
    std::this_thread::sleep_for(std::chrono::seconds(2));
  } else if (world->rank() == 1) {
    const Pending a = world->start_receive("a", view(y), 0, 3);
    { const Pending b = world->start_receive("b", view(y), 0, 3); }
    expect_parts(error_of([&] { world->barrier("later"); }), {"[mpi] MPI_Testall: "});
  }
}

void poll(Communicator& world) {
  std::vector<float> x(100000, 1);
  world.recorder().reset();
  world.barrier("together");
  Pending sum = world.start_all_reduce("polled", view(x));
  while (!sum.poll()) std::this_thread::yield();
  check(x[99999] == static_cast<float>(world.size()), "contract", "polled sum: got {}", x[99999]);
  std::this_thread::sleep_for(std::chrono::seconds(3));  // work that hides nothing any more
  check(sum.poll(), "contract", "a complete call is to stay complete");
  sum.wait();
  const Traffic traffic = world.recorder().total("polled");
  check(traffic.calls == 1 && traffic.seconds < 2.5 && traffic.exposed <= traffic.seconds, "contract",
        "expected seconds to end with the poll that saw the end, got {} of which exposed {}", traffic.seconds,
        traffic.exposed);
}

/// Each on a communicator of its own, and every rank must say the same.
void deadlock(const Process& process) {
  const auto start = std::chrono::steady_clock::now();
  const int rank = process.rank(), size = process.size();
  std::vector<float> x(100000);
  const auto expect_everywhere = [&](const std::string& error, std::initializer_list<const char*> parts) {
    expect_parts(error, parts);
    const std::vector<std::string> all = gather_text(*mpi_world(nullptr, 20), "errors", error);
    for (const std::string& other : all)
      check(other == error, "contract", "expected the same on all ranks, got {} and {}", error, other);
  };
  {  // a rank in a call of tp and one in a call of cp, each with all ranks, the others in either
    const auto world = mpi_world(nullptr, 60);
    const auto tp = world->split("tp", 0, rank), cp = world->split("cp", 0, -rank);
    tp->barrier("before"), cp->barrier("before"), tp->all_reduce("before", view(x));
    expect_everywhere(
        error_of([&] {
          if (rank % 2 == 0)
            tp->all_reduce("partial sums", view(x));
          else
            cp->barrier("states");
        }),
        {"for ever:\n  rank 0 in all_reduce of 400000 bytes (100000 float32) for partial sums at "
         "tests/parallel/mpi/communicator.cpp:",
         "of group tp, number 3\n  rank 1 in barrier for states at tests/parallel/mpi/communicator.cpp:",
         "of group cp, number 2"});
  }
  {  // a message that never comes, after one of its tag that did; the others wait for its receiver
    const auto world = mpi_world(nullptr, 60);
    if (rank == size - 1) world->send("first", view(x), 0, 7);
    expect_everywhere(
        error_of([&] {
          if (rank == 0)
            world->receive("first", view(x), size - 1, 7), world->receive("second", view(x), size - 1, 7);
          world->barrier("after");
        }),
        {"rank 0 in receive of 400000 bytes", "tag 7 for second", "rank 1 in barrier for after"});
  }
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
  check(time.count() < 20, "contract", "two deadlocks took {} s", time.count());
}

/// Ranks wait long for one that computes, for one that computes after it has waited long itself, and again
/// and again. The first time with the patience of real runs.
void slow(const Process& process) {
  const int rank = process.rank(), size = process.size();
  const auto compute = [&](double seconds) {
    std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  };
  std::vector<float> x(100000);
  for (const double patience : {2.0, 0.0}) {
    const auto world = mpi_world(nullptr, 60, {.patience = patience});
    const auto tp = world->split("tp", rank / 2, rank), cp = world->split("cp", rank % 2, rank);
    for (int round = 0; round < (patience > 0 ? 1 : 40); ++round) {
      const double seconds = patience > 0 ? 5 : 0.02;
      for (int one = 0; one < 2; ++one) {
        if (rank == one) compute(seconds);
        tp->all_reduce("x", view(x)), cp->all_reduce("x", view(x));
      }
      if (rank == size - 1) compute(seconds / 4), world->send("m", view(x), 0, round);
      if (rank == 0) world->receive("m", view(x), size - 1, round);
      world->barrier("all");
    }
  }
}

void agreement(Communicator& world) {
  const auto texts = gather_text(world, "texts", std::string(static_cast<std::size_t>(world.rank()), 'x'));
  for (std::size_t rank = 0; rank < texts.size(); ++rank)
    check(texts[rank] == std::string(rank, 'x'), "contract", "text of rank {}: {}", rank, texts[rank]);
  agree(world, "well", [] {});
  expect_parts(
      error_of([&] { agree(world, "badly", [&] { check(world.rank() != 1, "data", "is broken"); }); }),
      {"rank 1: [data] is broken"});
}

/// The best of some runs: other users of the machine only ever make it slower.
void latency(Communicator& world) {
  for (const std::int64_t count : {1, 1000, 100000, 4000000}) {
    std::vector<float> x(static_cast<std::size_t>(count));
    const int calls = count > 100000 ? 1 : 100, runs = count > 100000 ? 5 : 30;
    double best = 1e30;
    for (int run = 0; run < runs; ++run) {
      world.barrier("start");
      const auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < calls; ++i) world.all_reduce("latency", view(x));
      const std::chrono::duration<double, std::micro> time = std::chrono::steady_clock::now() - start;
      best = std::min(best, time.count() / calls);
    }
    if (world.rank() == 0)
      fmt::print("all_reduce of {} bytes on {} ranks: {:.1f} us\n", 4 * count, world.size(), best);
  }
}

void run(const Process& process, const std::string& what) {
  if (what == "contract") {
    contract(*mpi_world(nullptr, 60));
    contract(*mpi_world(nullptr, 60, {.largest_message = 1000}));  // long messages are cut in pieces
    contract(*mpi_world(nullptr, 60, {.largest_tag = 60}), "messages_meet_by_tag");  // tags of calls recur
    contract(*mpi_world(nullptr, 60, {.patience = 0}));                              // every wait is told
    std::vector<float> x(1);
    expect_parts(error_of([&] {
                   const auto world = mpi_world(nullptr, 60, {.largest_tag = 60});
                   world->send("m", view(x), (world->rank() + 1) % world->size(), 61);
                 }),
                 {"[world] send of 4 bytes", "with tag 61", "has tags of at most 60"});
    agreement(*mpi_world(nullptr, 60));
    poll(*mpi_world(nullptr, 60));
  } else if (what == "mismatch") {
    mismatch(process);
  } else if (what == "timeout") {
    timeout();
  } else if (what == "told") {
    told();
  } else if (what == "gpu_wait") {
    gpu_wait();
  } else if (what == "lost") {
    lost();
  } else if (what == "deadlock") {
    deadlock(process);
  } else if (what == "slow") {
    slow(process);
  } else if (what == "latency") {
    latency(*mpi_world(nullptr, 60));
  } else {
    fail("contract", "nothing is called {}", what);
  }
}

}  // namespace
}  // namespace transmamba

int main(int argc, char** argv) {
  return transmamba::run_command([&](const transmamba::Process& process) {
    transmamba::check(process.size() > 1, "contract",
                      "this is to be started by mpirun, with more than one rank");
    transmamba::run(process, argc > 1 ? argv[1] : "");
    return 0;
  });
}
