// Run by mpirun with a GPU a rank:
//   nccl contract  calls on GPU memory, with integers, exactly
//   nccl timeout   a rank that does not come ends the run with the call's name
//   nccl lost      a rank that fails ends the run of those that wait for it
// Ends with 1 on the first failure; the last two always do.
#include <algorithm>
#include <chrono>
#include <functional>
#include <thread>

#include "gpu_numbers.h"
#include "kernels/elementwise.h"
#include "launch/session.h"

namespace transmamba {
namespace {

struct Test : GpuNumbers {
  Test(const Context& on, Communicator& ranks) : GpuNumbers{on}, world(ranks) {}
  Communicator& world;
  const int n = world.size(), me = world.rank(), next = (me + 1) % n, previous = (me + n - 1) % n;

  double sum(std::int64_t i) const {
    double total = 0;
    for (int rank = 0; rank < n; ++rank) total += number(rank, i);
    return total;
  }
  double largest(std::int64_t i) const {
    double most = 0;
    for (int rank = 0; rank < n; ++rank) most = std::max(most, number(rank, i));
    return most;
  }

  void all_reduce() const {
    for (const DType dtype : kTypes)
      for (const std::int64_t count : {1, 1000, 100003, 3000000}) {
        const Tensor x = put(numbers(me, count), dtype), y = put(numbers(me, count), dtype);
        Pending added = world.start_all_reduce("sum", x);
        world.all_reduce("maximum", y, Reduce::max);
        added.wait();
        expect(
            x, [&](std::int64_t i) { return sum(i); }, "sum");
        expect(
            y, [&](std::int64_t i) { return largest(i); }, "maximum");
      }
  }

  void gather_and_scatter() const {
    for (const DType dtype : kTypes)
      for (const std::int64_t count : {1, 999, 200000}) {
        const auto gathered = [&](std::int64_t i) { return number(static_cast<int>(i / count), i % count); };
        const auto scattered = [&](std::int64_t i) { return sum(me * count + i); };
        const Tensor mine = put(numbers(me, count), dtype), all = poisoned(n * count, dtype);
        world.all_gather("gather", mine, all);
        expect(all, gathered, "gather");
        const Tensor whole = poisoned(n * count, dtype);
        const Tensor own = whole.slice(0, me * count, (me + 1) * count);
        gpu::copy(own.view().raw(), mine.view().raw(), count * size_of(dtype), context.stream);
        world.all_gather("gather in place", own, whole);
        expect(whole, gathered, "gather in place");
        const Tensor addends = put(numbers(me, n * count), dtype), part = poisoned(count, dtype);
        world.reduce_scatter("scatter", addends, part);
        expect(part, scattered, "scatter");
        const Tensor in_place = put(numbers(me, n * count), dtype);
        const Tensor own_part = in_place.slice(0, me * count, (me + 1) * count);
        world.reduce_scatter("scatter in place", in_place, own_part);
        expect(own_part, scattered, "scatter in place");
      }
  }

  void broadcast() const {
    for (int root = 0; root < n; ++root) {
      const Tensor x = put(numbers(me, 5000));
      world.broadcast("broadcast", x, root);
      expect(
          x, [&](std::int64_t i) { return number(root, i); }, "broadcast");
    }
  }

  /// From rank a to rank b go 1000 a + b numbers, to itself too; rank 0 hears nothing.
  void exchange() const {
    const auto count = [](int from, int to) { return to == 0 ? 0 : std::int64_t{1000} * from + to; };
    std::vector<Tensor> sent, received;
    std::vector<Outgoing> outgoing;
    std::vector<Incoming> incoming;
    for (int peer = 0; peer < n; ++peer) {
      sent.push_back(put(numbers(10 * me + peer, count(me, peer)), DType::bf16));
      received.push_back(poisoned(count(peer, me), DType::bf16));
      outgoing.push_back({peer, sent.back()}), incoming.push_back({peer, received.back()});
    }
    world.exchange("exchange", outgoing, incoming);
    for (int peer = 0; peer < n; ++peer)
      expect(
          received[static_cast<std::size_t>(peer)], [&](std::int64_t i) { return number(10 * peer + me, i); },
          "exchange");
    world.exchange("nothing", {}, {});
  }

  /// As a pipeline does: receives are started before the sends that the other side needs first, both ways.
  void messages() const {
    constexpr Lane kLanes[] = {{"up", 1}, {"down", -1}};
    world.open_lanes(kLanes), world.open_lanes(kLanes);  // does nothing the second time
    for (const std::int64_t count : {1000, 16000000}) {
      constexpr int kRounds = 4;
      std::vector<Tensor> from_above, from_below, out;
      std::vector<Pending> receives, sends;
      for (int round = 0; round < kRounds; ++round) {
        from_below.push_back(poisoned(count)), from_above.push_back(poisoned(count));
        receives.push_back(world.start_receive("up", from_below.back(), previous, round));
        receives.push_back(world.start_receive("down", from_above.back(), next, round));
      }
      for (int round = 0; round < kRounds; ++round) {
        out.push_back(put(numbers(100 * me + round, count)));
        sends.push_back(world.start_send("down", out.back(), previous, round));
        sends.push_back(world.start_send("up", out.back(), next, round));
      }
      for (Pending& send : sends) send.wait();
      for (Pending& receive : receives) receive.wait();
      for (std::size_t round = 0; round < kRounds; ++round) {
        const auto wanted = [&](int peer) {
          return [peer, round](std::int64_t i) { return number(100 * peer + static_cast<int>(round), i); };
        };
        expect(from_below[round], wanted(previous), "message up");
        expect(from_above[round], wanted(next), "message down");
      }
    }
  }

  /// Memory of tensors that are dropped at once is handed out again while calls are under way, and the host
  /// waits for nothing.
  void order_of_streams() const {
    constexpr int kRounds = 200;
    const std::int64_t count = 300000;
    const Tensor total = put(Numbers(static_cast<std::size_t>(count), 0));
    for (int round = 0; round < kRounds; ++round) {
      const Tensor x = context.empty({count}, DType::f32);
      fill({.value = static_cast<double>(round % 7 + me), .y = x}, context.stream);
      Pending pending = world.start_all_reduce("ordered", x);
      const Tensor other = context.empty({count}, DType::f32);  // work beside it
      fill({.value = -5, .y = other}, context.stream);
      pending.wait();
      add({.x = x, .y = total}, context.stream);
      if (round % 3 == 0) {  // one that nobody waits for
        const Tensor dropped = context.empty({count}, DType::f32);
        fill({.value = 1, .y = dropped}, context.stream);
        const Pending unwaited = world.start_all_reduce("dropped", dropped);
      }
    }
    double wanted = 0;
    for (int round = 0; round < kRounds; ++round) wanted += n * (round % 7) + n * (n - 1) / 2;
    expect(
        total, [&](std::int64_t) { return wanted; }, "sum of sums");
  }

  /// Calls that wait at once stand in the compute stream, others beside it; to a group they are one order.
  void both_kinds_in_turns() const {
    constexpr int kRounds = 100;
    const std::int64_t few = 1000, many = 3000000;
    const Tensor of_few = put(Numbers(static_cast<std::size_t>(few), 0)),
                 of_many = put(Numbers(static_cast<std::size_t>(many), 0));
    double wanted = 0;
    for (int round = 0; round < kRounds; ++round) {
      const Tensor x = context.empty({many}, DType::f32), y = context.empty({few}, DType::f32);
      fill({.value = static_cast<double>(round % 5 + me), .y = x}, context.stream);
      fill({.value = static_cast<double>(round % 5 + me), .y = y}, context.stream);
      Pending pending = world.start_all_reduce("beside", x);
      for (int again = 0; again < round % 3 + 1; ++again) world.all_reduce("at once", y, Reduce::max);
      Pending small = world.start_all_reduce("beside", y);
      world.broadcast("at once", of_few, 0);
      if (round % 2) small.wait();
      pending.wait(), small.wait();
      add({.x = x, .y = of_many}, context.stream), add({.x = y, .y = of_few}, context.stream);
      wanted += n * (round % 5) + n * (n - 1) / 2;
    }
    expect(
        of_many, [&](std::int64_t) { return wanted; }, "sums beside");
    double maxima = 0;  // n times each
    for (int round = 0; round < kRounds; ++round) maxima += n * (round % 5 + n - 1);
    expect(
        of_few, [&](std::int64_t) { return maxima; }, "sums of maxima");
  }

  void messages_that_wait() const {
    constexpr Lane kLane{"wait", 1};
    world.open_lanes({&kLane, 1});
    for (const std::int64_t count : {1, 5000000}) {
      const Tensor out = put(numbers(me, count)), in = poisoned(count);
      if (me % 2 == 0) world.send("wait", out, next, 0);
      world.receive("wait", in, previous, 0);
      if (me % 2 == 1) world.send("wait", out, next, 0);
      expect(
          in, [&](std::int64_t i) { return number(previous, i); }, "message that waits");
    }
  }

  /// NCCL's own calls, against which ours are timed, between ours.
  void bare() const {
    const auto nccl = world.bare();
    const Tensor x = put(numbers(me, 1000)), mine = put(numbers(me, 10)), all = poisoned(10 * n),
                 from = poisoned(10);
    nccl->make({.kind = Call::Kind::all_reduce, .purpose = "bare", .in = x, .out = x});
    nccl->make({.kind = Call::Kind::all_gather, .purpose = "bare", .in = mine, .out = all});
    const Outgoing outgoing{next, mine};
    const Incoming incoming{previous, from};
    nccl->make({.kind = Call::Kind::exchange,
                .purpose = "bare",
                .outgoing = {&outgoing, 1},
                .incoming = {&incoming, 1}});
    const Tensor y = put(numbers(me, 1000));
    world.all_reduce("between", y);
    for (const Tensor& total : {x, y})
      expect(
          total, [&](std::int64_t i) { return sum(i); }, "bare sum");
    expect(
        all, [&](std::int64_t i) { return number(static_cast<int>(i / 10), i % 10); }, "bare gather");
    expect(
        from, [&](std::int64_t i) { return number(previous, i); }, "bare exchange");
  }

  void groups() const {
    for (int columns = 1; columns <= n; ++columns) {
      if (n % columns) continue;
      const auto row = world.split("row", me / columns, me),
                 column = world.split("column", me % columns, -me);
      const Tensor in_row = put({static_cast<double>(me)}), in_column = put({static_cast<double>(me)});
      Pending both[] = {row->start_all_reduce("row", in_row), column->start_all_reduce("column", in_column)};
      both[1].wait(), both[0].wait();
      double row_sum = 0, column_sum = 0;
      for (int rank = 0; rank < n; ++rank) {
        if (rank / columns == me / columns) row_sum += rank;
        if (rank % columns == me % columns) column_sum += rank;
      }
      expect(
          in_row, [&](std::int64_t) { return row_sum; }, "sum of a row");
      expect(
          in_column, [&](std::int64_t) { return column_sum; }, "sum of a column");
    }
    const bool is_end = me == 0 || me == n - 1;  // the others end up alone
    const auto ends = world.split("ends", is_end ? 0 : 1 + me, me);
    const Tensor one = put({1});
    ends->all_reduce("ends", one);
    expect(
        one, [&](std::int64_t) { return ends->size(); }, "ranks of the ends");
  }

  void host_memory_beside_it() const {
    const Tensor x = context.empty_host({2}, DType::f64);
    x.ptr<double>()[0] = me, x.ptr<double>()[1] = 1;
    world.all_reduce("host", x);
    check(x.ptr<double>()[0] == n * (n - 1) / 2 && x.ptr<double>()[1] == n, "nccl",
          "sums on the host: {}, {}", x.ptr<double>()[0], x.ptr<double>()[1]);
    world.barrier("barrier");
    const Tensor gpu = poisoned(4 * n), host = context.empty_host({4}, DType::f32);
    const auto refuses = [&](const char* what, const char* part, const std::function<void()>& call) {
      std::string text;
      try {
        call();
      } catch (const Error& error) {
        text = error.what();
      }
      check(text.find(part) != std::string::npos, "nccl", "{}: expected \"{}\" in: {}", what, part, text);
    };
    refuses("host to GPU", "expected memory of one kind", [&] { world.all_gather("mixed", host, gpu); });
    refuses("no lane", "need a lane", [&] { world.send("laneless", gpu, next, 0); });
  }
};

using Member = void (Test::*)() const;
constexpr std::pair<const char*, Member> kTests[] = {
    {"all_reduce", &Test::all_reduce},
    {"gather_and_scatter", &Test::gather_and_scatter},
    {"broadcast", &Test::broadcast},
    {"exchange", &Test::exchange},
    {"messages", &Test::messages},
    {"order_of_streams", &Test::order_of_streams},
    {"both_kinds_in_turns", &Test::both_kinds_in_turns},
    {"messages_that_wait", &Test::messages_that_wait},
    {"bare", &Test::bare},
    {"groups", &Test::groups},
    {"host_memory_beside_it", &Test::host_memory_beside_it},
};

void run(const Process& process, const std::string& what) {
  TrainConfig config;
  config.device = "cuda", config.dtype = "float32";
  Session session(config, process);
  const auto world = session.world(process, what == "timeout" ? 3 : 60);
  if (what == "contract") {
    for (const auto& [name, test] : kTests) {
      (Test(session.context(), *world).*test)();
      world->barrier("between tests");
      if (world->rank() == 0) fmt::print("{}: ok\n", name), std::fflush(stdout);
    }
    return;
  }
  const Test test(session.context(), *world);
  const Tensor x = test.put({1, 2, 3});
  world->all_reduce("together", x);
  synchronize(session.context());
  if (what == "timeout") {
    if (world->rank() == 1) std::this_thread::sleep_for(std::chrono::seconds(30));
    world->all_reduce("too late", x);
    synchronize(session.context());
  } else if (what == "lost") {
    Pending pending;
    if (world->rank() == 0) pending = world->start_all_reduce("never", x), pending.wait();
    if (world->rank() == 1) {  // with a call under way itself, in which nobody joins
      const auto both = world->start_all_gather("nor this", x, test.poisoned(3 * test.n));
      fail("data", "file is broken");
    }
    synchronize(session.context());
  } else {
    fail("nccl", "nothing is called {}", what);
  }
}

}  // namespace
}  // namespace transmamba

int main(int argc, char** argv) {
  return transmamba::run_command([&](const transmamba::Process& process) {
    transmamba::check(process.size() > 1, "nccl", "this is to be started by mpirun, with more than one rank");
    transmamba::run(process, argc > 1 ? argv[1] : "contract");
    return 0;
  });
}
