// Run by mpirun with a GPU a rank:
//   nccl_window        messages into windows, and sums by them, with integers, exactly
//   nccl_window late   a rank that does not come ends the run with the message's name
//   nccl_window late_sum  or with the sum's
#include <chrono>
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
  static constexpr std::int64_t kCount = 300000;

  /// In the window.
  Tensor block(std::int64_t count = kCount) const { return {*world.window(), {count}, DType::f32}; }

  /// To the next rank, `there`, from the previous one.
  Pending pass(const Tensor& out, const View& there, const View& in) const {
    const Outgoing outgoing{next, out, there};
    const Incoming incoming{previous, in};
    return world.start_exchange("window", {&outgoing, 1}, {&incoming, 1});
  }

  /// Copies by the peers, whose memory is handed out again at once, with no host that waits. What is not in
  /// the window goes through NCCL, in the same order.
  void messages() const {
    const Tensor total = put(Numbers(kCount, 0));
    double wanted = 0;
    for (int round = 0; round < 200; ++round) {
      const Tensor out = context.empty({kCount}, DType::f32), beside = context.empty({kCount}, DType::f32);
      fill({.value = static_cast<double>(round % 7 + me), .y = out}, context.stream);
      const std::int64_t count = round % 3 == 0 ? kCount : round % 3;
      const Tensor in = block(count), second = block();
      const Incoming both[] = {{previous, in}, {previous, second}};
      if (round % 2 == 0) world.expect(both);
      Pending first = pass(out.slice(0, 0, count), in, in), other = pass(out, second, second);
      if (round % 5 == 0) pass(out, {}, beside).wait();
      other.wait(), first.wait();
      add({.x = second, .y = total}, context.stream);
      add({.x = in, .y = total.slice(0, 0, count)}, context.stream);
      wanted += (round % 3 == 0 ? 2 : 1) * (round % 7 + previous);
    }
    expect(
        total.slice(0, 2, kCount), [&](std::int64_t) { return wanted; }, "sum of messages");
    const Tensor all = block(), mine = put(numbers(me, 100));
    pass(mine, all.slice(0, 100 * me, 100 * me + 100), all.slice(0, 100 * previous, 100 * previous + 100))
        .wait();
    expect(
        all.slice(0, 100 * previous, 100 * previous + 100),
        [&](std::int64_t i) { return number(previous, i); }, "message to another place");
  }

  /// Sums in several pieces, in place and not, two at a time, with others' messages between them.
  void sums() const {
    for (int round = 0; round < 12; ++round) {
      const std::int64_t count = round % 3 == 0 ? kCount : round % 3 == 1 ? 1 : 999;
      const Tensor first = put(numbers(me + round, n * count)),
                   second = put(numbers(me + 2 * round, n * count)), apart = poisoned(count), in = block(),
                   out = put(numbers(me, 100));
      const Tensor own = first.slice(0, me * count, (me + 1) * count);
      Pending in_place = world.start_reduce_scatter("sums", first, own);
      Pending message = pass(out, in.slice(0, 0, 100), in.slice(0, 0, 100));
      Pending not_in_place = world.start_reduce_scatter("sums", second, apart);
      not_in_place.wait(), message.wait(), in_place.wait();
      for (const auto& [sum, seed] : {std::pair(own, round), {apart, 2 * round}})
        expect(
            sum,
            [&, seed = seed](std::int64_t i) {
              double wanted = 0;
              for (int rank = 0; rank < n; ++rank) wanted += number(rank + seed, me * count + i);
              return wanted;
            },
            "sum of the ranks' parts");
    }
  }

  /// What is expected comes before its receiver calls: all ranks send, and wait for that, before any does.
  void expected() const {
    const Tensor in = block(), out = put(numbers(me, kCount));
    const Outgoing outgoing{next, out, in};
    const Incoming incoming{previous, in};
    world.expect({&incoming, 1});
    world.start_exchange("window", {&outgoing, 1}, {}).wait();
    synchronize(context);
    world.start_exchange("window", {}, {&incoming, 1}).wait();
    expect(
        in, [&](std::int64_t i) { return number(previous, i); }, "message that was expected");
  }

  /// As a pipeline does: both ways, receives before the sends that the other side needs first.
  void lanes() const {
    constexpr Lane kLanes[] = {{"up", 1, 4 * kCount}, {"down", -1, 4 * kCount}};
    world.open_lanes(kLanes);
    const Tensor from_below = put(Numbers(kCount, 0)), from_above = put(Numbers(kCount, 0));
    double below = 0, above = 0;
    for (int round = 0; round < 100; ++round) {
      const std::int64_t count = round % 2 == 0 ? kCount : 1000;
      const auto filled = [&](double value) {
        const Tensor x = context.empty({kCount}, DType::f32);
        fill({.value = value, .y = x}, context.stream);
        return x;
      };
      const Tensor up = filled(-1), down = filled(-1), out = filled(round % 7 + me);
      Pending in[] = {world.start_receive("up", up.slice(0, 0, count), previous, round),
                      world.start_receive("down", down.slice(0, 0, count), next, round)};
      Pending sends[] = {world.start_send("down", out.slice(0, 0, count), previous, round),
                         world.start_send("up", out.slice(0, 0, count), next, round)};
      in[0].wait(), in[1].wait();
      add({.x = up, .y = from_below}, context.stream), add({.x = down, .y = from_above}, context.stream);
      below += round % 7 + previous, above += round % 7 + next;
    }
    for (const auto& [x, wanted] : {std::pair(from_below, below), {from_above, above}})
      expect(
          x.slice(0, 0, 1000), [wanted = wanted](std::int64_t) { return wanted; },
          "sum of a lane's messages");
  }

  void late(bool in_a_sum) const {
    const Tensor in = block(3), x = put({1, 2, 3}), addends = put(numbers(me, 3 * n)), sum = poisoned(3);
    if (me == 1) std::this_thread::sleep_for(std::chrono::seconds(30));
    in_a_sum ? world.start_reduce_scatter("sums", addends, sum).wait() : pass(x, in, in).wait();
    synchronize(context);
  }
};

void run(const Process& process, const std::string& what) {
  TrainConfig config;
  config.device = "cuda", config.dtype = "float32";
  Session session(config, process);
  const auto world = session.world(process, what.starts_with("late") ? 3 : 60);
  world->open_window(2 * 4 * Test::kCount + 512);
  check(world->window(), "window", "there is none between {} ranks of one host", world->size());
  const Test test(session.context(), *world);
  check(world->open_sums(std::int64_t{1} << 20), "window", "sums of {} ranks of one host go another way",
        world->size());
  if (what.starts_with("late")) return test.late(what == "late_sum");
  test.messages(), test.sums(), test.expected(), test.lanes();
}

}  // namespace
}  // namespace transmamba

int main(int argc, char** argv) {
  return transmamba::run_command([&](const transmamba::Process& process) {
    transmamba::check(process.size() > 1, "window",
                      "this is to be started by mpirun, with more than one rank");
    transmamba::run(process, argc > 1 ? argv[1] : "");
    return 0;
  });
}
