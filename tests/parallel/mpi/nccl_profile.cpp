// Run by mpirun with a GPU a rank: calls on GPU memory in a profile, by the GPU's clock. Ends with 1 on the
// first failure.
#include <algorithm>
#include <cmath>
#include <thread>

#include "core/profile.h"
#include "kernels/elementwise.h"
#include "launch/session.h"
#include "parallel/comm/clock.h"

namespace transmamba {
namespace {

struct Test {
  Context context;
  Communicator& world;
  Profile& profile;

  Tensor numbers(std::int64_t count) const {
    const Tensor x = context.empty({count}, DType::f32);
    fill({.value = 1, .y = x}, context.stream);
    return x;
  }
  const CallSpan& call(std::string_view purpose, std::string_view kind) const {
    for (const auto& c : profile.calls())
      if (c->purpose == purpose && c->kind == kind) return *c;
    fail("profile", "no {} for {}", kind, purpose);
  }
  static double seconds(const CallSpan& c) { return c.end.seconds - c.begin.seconds; }

  /// Waited for at once: all of it is exposed, at a rate that a link can have.
  void exposed() const {
    const Tensor x = numbers(1 << 24);
    const Region region(context, "exposed");
    world.all_reduce("exposed", x);
  }
  void check_exposed() const {
    const CallSpan& c = call("exposed", "all_reduce");
    const double rate = c.bus_factor * static_cast<double>(c.size) / seconds(c);
    check(1e9 < rate && rate < 2e12, "profile", "64 MiB in {} s: {} GB/s", seconds(c), 1e-9 * rate);
    check(c.exposed > 0.8 * seconds(c), "profile", "expected all of {} s to be exposed, got {}", seconds(c),
          c.exposed);
  }

  /// Started first and waited for last, but a call between them stands in the compute stream, behind it.
  void behind() const {
    const Tensor x = numbers(1 << 24), y = numbers(1024);
    const Region region(context, "behind");
    Pending pending = world.start_all_reduce("in front", x);
    world.all_reduce("behind", y);
    pending.wait();
  }
  void check_behind() const {
    const CallSpan &front = call("in front", "all_reduce"), &c = call("behind", "all_reduce");
    const double off = std::abs(c.exposed - seconds(c));  // both on rank 0's clock, which is a product
    check(front.exposed > 0.5 * seconds(front) && off < 1e-3 * seconds(c), "profile",
          "expected to wait for both, got {} of {} s and {} of {} s", front.exposed, seconds(front),
          c.exposed, seconds(c));
    check(c.begin.seconds > front.end.seconds - 5e-6, "profile", "from {}, after one that ends at {}",
          c.begin.seconds, front.end.seconds);
  }

  /// Beside much longer work of the compute stream.
  void hidden() const {
    const Tensor x = numbers(1 << 20), large = numbers(1 << 28);
    const Region region(context, "hidden");
    Pending pending = world.start_all_reduce("hidden", x);
    for (int i = 0; i < 50; ++i) fill({.value = 2, .y = large}, context.stream);
    pending.wait();
  }
  void check_hidden() const {
    const CallSpan& c = call("hidden", "all_reduce");
    check(seconds(c) > 0 && c.exposed == 0, "profile", "expected nothing of {} s to be exposed, got {}",
          seconds(c), c.exposed);
  }

  /// Rank 1 comes 50 ms later, for which the others wait on the GPU.
  void late() const {
    const Tensor x = numbers(1024);
    synchronize(context);
    world.barrier("together");
    if (world.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    const Region region(context, "late");
    world.all_reduce("late", x);
  }
  void check_late(const ClockOffset& early, const ClockOffset& late) const {
    const CallSpan& c = call("late", "all_reduce");
    check(world.rank() == 1 ? seconds(c) < 0.03 : seconds(c) > 0.04 && c.exposed > 0.04, "profile",
          "expected to wait for rank 1 alone, got {} s of which exposed {}", seconds(c), c.exposed);
    // Ranks of a sum end together; a kernel's end is seen some microseconds late, and the clocks of host and
    // GPU are tied to some tens.
    const Tensor mine = context.empty_host({1}, DType::f64),
                 all = context.empty_host({world.size()}, DType::f64);
    *mine.ptr<double>() = on_first_clock(early, late, c.end.seconds);
    world.all_gather("ends", mine, all);
    const double* const ends = all.ptr<double>();
    const auto [first, last] = std::minmax_element(ends, ends + world.size());
    check(*last - *first < 500e-6, "profile", "the same call ends at {} and {} s", *first, *last);
  }

  void messages() const {
    constexpr Lane kLanes[] = {{"up", 1}};
    world.open_lanes(kLanes);
    const int n = world.size(), next = (world.rank() + 1) % n, previous = (world.rank() + n - 1) % n;
    const Tensor sent = numbers(1 << 20), received = numbers(1 << 20);
    const Region region(context, "messages");
    Pending receive = world.start_receive("up", received, previous, 0);
    Pending send = world.start_send("up", sent, next, 0);
    send.wait(), receive.wait();
  }
  void check_messages() const {
    const CallSpan &send = call("up", "send"), &receive = call("up", "receive");
    check(send.bytes == 4 << 20 && receive.bytes == 0 && receive.size == 4 << 20, "profile",
          "bytes {} and {}", send.bytes, receive.size);
    check(seconds(send) > 0 && seconds(receive) > 0, "profile", "{} and {} s", seconds(send),
          seconds(receive));
  }

  void check_all(double before, double after) const {
    std::map<Recorder::Key, Traffic> seen;
    for (const auto& c : profile.calls()) {
      seen[{c->axis, std::string(c->purpose)}] += {.calls = 1, .bytes = c->bytes};
      check(before - 1e-3 < c->begin.seconds && c->begin.seconds <= c->end.seconds &&
                c->end.seconds < after + 1e-3,
            "profile", "{}: from {} to {}, within {} to {}", c->purpose, c->begin.seconds, c->end.seconds,
            before, after);
    }
    for (const auto& [key, traffic] : world.recorder().table())
      check(seen[key].calls == traffic.calls && seen[key].bytes == traffic.bytes, "profile",
            "{}: {} calls of {} in the profile", key.second, seen[key].calls, traffic.calls);
    for (const RegionSpan& r : profile.regions())
      check(r.seconds() > 0 && r.exposed >= 0 && r.own() > -1e-6, "profile", "{}: {} s, exposed {}, own {}",
            name_of(r), r.seconds(), r.exposed, r.own());
  }
};

void run(const Process& process) {
  TrainConfig config;
  config.device = "cuda", config.dtype = "float32";
  Session session(config, process);
  const auto world = session.world(process, 60);
  Profile profile(session.context().stream);
  Context context = session.context();
  context.profile = &profile;
  const Test test{context, *world, profile};
  test.exposed(), test.behind(), test.hidden(), test.messages();  // the first calls are slow
  synchronize(context);
  world->barrier("together");
  world->recorder().set_profile(&profile);
  world->recorder().reset();
  const double before = Profile::now();
  const ClockOffset early = measure_clock_offset(*world, Profile::now);
  world->recorder().reset();
  profile.begin();
  profile.record();
  test.exposed(), test.behind(), test.hidden();
  profile.pause();
  profile.record();
  test.late(), test.messages();
  profile.pause();
  profile.end();
  const double after = Profile::now();
  test.check_all(before, after);
  const ClockOffset late = measure_clock_offset(*world, Profile::now);
  world->recorder().set_profile(nullptr);
  test.check_exposed(), test.check_behind(), test.check_hidden(), test.check_messages();
  test.check_late(early, late);
  if (world->rank() == 0) fmt::print("profile: ok\n");
}

}  // namespace
}  // namespace transmamba

int main() {
  return transmamba::run_command([&](const transmamba::Process& process) {
    transmamba::check(process.size() > 1, "nccl_profile",
                      "this is to be started by mpirun, with more than one rank");
    transmamba::run(process);
    return 0;
  });
}
