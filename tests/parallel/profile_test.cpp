// Calls between ranks in a profile: all that the recorder counts, with bandwidths as nccl-tests defines them,
// on one clock.
#include "core/profile.h"

#include <gtest/gtest.h>
#include <algorithm>

#include <thread>

#include "parallel/comm/clock.h"
#include "parallel/comm/timed_call.h"
#include "tests/parallel/worlds.h"

namespace transmamba {
namespace {

using Kind = Call::Kind;

TEST(BusFactor, IsThatOfNcclTests) {  // doc/PERFORMANCE.md there
  EXPECT_DOUBLE_EQ(bus_factor(Kind::all_reduce, 2), 1);
  EXPECT_DOUBLE_EQ(bus_factor(Kind::all_reduce, 8), 1.75);
  EXPECT_DOUBLE_EQ(bus_factor(Kind::all_gather, 4), 0.75);
  EXPECT_DOUBLE_EQ(bus_factor(Kind::reduce_scatter, 4), 0.75);
  EXPECT_DOUBLE_EQ(bus_factor(Kind::broadcast, 4), 1);
  EXPECT_DOUBLE_EQ(bus_factor(Kind::send, 4), 1);
  EXPECT_DOUBLE_EQ(bus_factor(Kind::receive, 4), 1);
  EXPECT_DOUBLE_EQ(bus_factor(Kind::exchange, 4), 1);
}

View view(std::vector<float>& x) {
  return View(reinterpret_cast<std::byte*>(x.data()), DType::f32, {static_cast<std::int64_t>(x.size())});
}

TEST(CallSpans, SayWhatEachKindOfCallIsAbout) {
  constexpr int kRanks = 4;
  run_as_threads(kRanks, [](Communicator& world) {
    Profile profile{Stream{}};
    world.recorder().set_profile(&profile);
    std::vector<float> all(40), mine(10), two(2), three(3);
    const int next = (world.rank() + 1) % kRanks, previous = (world.rank() + kRanks - 1) % kRanks;
    const Outgoing out[] = {{world.rank(), view(three)}, {next, view(two)}};
    const Incoming in[] = {{world.rank(), view(three)}, {previous, view(two)}};
    world.all_reduce("before", view(all));
    profile.record();
    world.all_reduce("r", view(all));
    world.all_gather("g", view(mine), view(all));
    world.reduce_scatter("s", view(all), view(mine));
    world.broadcast("b", view(mine), 2);
    world.exchange("e", out, in);
    world.send("p", view(three), next, 0), world.receive("p", view(three), previous, 0);
    world.barrier("w");
    profile.pause();
    world.all_reduce("after", view(all));
    profile.end();
    world.recorder().set_profile(nullptr);
    struct Expected {
      const char *purpose, *kind;
      std::int64_t bytes, size;
      int from, to;
    };
    const Expected expected[] = {{"r", "all_reduce", 240, 160, -1, -1},
                                 {"g", "all_gather", 120, 160, -1, -1},
                                 {"s", "reduce_scatter", 120, 160, -1, -1},
                                 {"b", "broadcast", world.rank() == 2 ? 40 : 0, 40, -1, -1},
                                 {"e", "exchange", 8, 8, -1, -1},
                                 {"p", "send", 12, 12, world.rank(), next},
                                 {"p", "receive", 0, 12, previous, world.rank()},
                                 {"w", "barrier", 0, 0, -1, -1}};
    check(profile.calls().size() == std::size(expected), "test", "{} calls", profile.calls().size());
    for (std::size_t i = 0; i < std::size(expected); ++i) {
      const CallSpan& call = *profile.calls()[i];
      const Expected& e = expected[i];
      check(call.axis == "world" && call.purpose == e.purpose && call.kind == std::string(e.kind) &&
                call.bytes == e.bytes && call.size == e.size && call.from == e.from && call.to == e.to,
            "test", "{} {}: {} bytes sent, size {}, {} to {}", call.kind, call.purpose, call.bytes, call.size,
            call.from, call.to);
      check(call.begin.seconds <= call.end.seconds && 0 <= call.exposed &&
                call.exposed <= call.end.seconds - call.begin.seconds + 1e-12,
            "test", "{}: from {} to {}, exposed {}", call.purpose, call.begin.seconds, call.end.seconds,
            call.exposed);
    }
  });
}

TEST(Groups, AreNamedAlikeOnTheirRanksAlone) {
  constexpr int kRanks = 8;
  std::vector<std::vector<std::string>> names(kRanks);
  run_as_threads(kRanks, [&](Communicator& world) {
    ParallelConfig degrees;
    degrees.tp = 2, degrees.cp = 2, degrees.pp = 2, degrees.dp = 1;
    const Mesh mesh(world, degrees);
    names[static_cast<std::size_t>(world.rank())] = {mesh.tp().group(), mesh.cp().group(), mesh.pp().group(),
                                                     mesh.data().group()};
  });
  const auto same = [&](int axis, int a, int b) {
    return names[static_cast<std::size_t>(a)][static_cast<std::size_t>(axis)] ==
           names[static_cast<std::size_t>(b)][static_cast<std::size_t>(axis)];
  };
  for (int a = 0; a < kRanks; ++a)
    for (int b = 0; b < kRanks; ++b) {
      EXPECT_EQ(same(0, a, b), a / 2 == b / 2) << a << " and " << b;
      EXPECT_EQ(same(1, a, b), a % 2 == b % 2 && a / 4 == b / 4) << a << " and " << b;
      EXPECT_EQ(same(2, a, b), a % 4 == b % 4) << a << " and " << b;
    }
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < i; ++j)
      EXPECT_NE(names[0][static_cast<std::size_t>(i)], names[0][static_cast<std::size_t>(j)]);
}

/// Each rank's clock is a thousand seconds or so off, and runs at another speed.
TEST(Clocks, OfAllRanksBecomeOne) {
  run_as_threads(4, [](Communicator& world) {
    const double skew = 1000 + 333.25 * world.rank(), speed = 1 + 1e-3 * world.rank();
    const auto start = Profile::now();
    const auto now = [&] { return skew + speed * (Profile::now() - start) + start; };
    const ClockOffset early = measure_clock_offset(world, now);
    std::vector<double> begins, ends;
    for (int i = 0; i < 20; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds((world.rank() + i) % 4 * 3));
      begins.push_back(now());
      world.barrier("together");
      ends.push_back(now());
    }
    const ClockOffset late = measure_clock_offset(world, now);
    check(world.rank() == 0 || (early.round_trip > 0 && late.at > early.at), "test", "round trip {}",
          early.round_trip);
    // Nobody leaves a barrier before everybody has come, but for what the clocks are off by: half of each
    // rank's worst round trip. Off by one rank's skew or by its drift in this time, it would not hold.
    const double own = std::max(early.round_trip, late.round_trip) / 2;
    std::vector<double> mine{own};
    for (int i = 0; i < 20; ++i)
      for (const double time : {begins[static_cast<std::size_t>(i)], ends[static_cast<std::size_t>(i)]})
        mine.push_back(on_first_clock(early, late, time));
    std::vector<double> all(mine.size() * 4);
    const auto words = [](std::vector<double>& x) {
      return View(reinterpret_cast<std::byte*>(x.data()), DType::f64, {static_cast<std::int64_t>(x.size())});
    };
    world.all_gather("times", words(mine), words(all));
    for (std::size_t a = 0; a < 4; ++a)
      for (std::size_t b = 0; b < 4; ++b)
        for (std::size_t i = 0; i < 20; ++i) {
          const double *of_a = &all[a * mine.size()], *of_b = &all[b * mine.size()];
          check(of_a[1 + 2 * i] <= of_b[2 + 2 * i] + of_a[0] + of_b[0] + 1e-9, "test",
                "barrier {}: rank {} comes at {}, rank {} goes at {}; clocks are off by {} and {}", i, a,
                of_a[1 + 2 * i], b, of_b[2 + 2 * i], of_a[0], of_b[0]);
        }
  });
}

TEST(Clocks, DriftByNoMoreThanTheirMeasurementsMayBeOffByKeepTheirPace) {
  const ClockOffset early{.at = 10, .offset = 5, .round_trip = 0.5};
  const double fits = on_first_clock(early, {.at = 12, .offset = 5.25, .round_trip = 0.25}, 10);
  EXPECT_EQ(fits, 10 + (5.125 + 5.25) / 2);
  EXPECT_EQ(on_first_clock(early, {.at = 12, .offset = 5.25, .round_trip = 0.25}, 12), fits + 2);
  const ClockOffset drifted{.at = 12, .offset = 6, .round_trip = 0.25};
  EXPECT_EQ(on_first_clock(early, drifted, 10), 15);
  EXPECT_EQ(on_first_clock(early, drifted, 11), 16.5);
  EXPECT_EQ(on_first_clock(early, drifted, 12), 18);
}

Config small(const char* mesh) {
  const std::string ini =
      "[model]\nvocab_size = 11\nhidden_size = 8\nnum_layers = 4\nnum_heads = 2\nffn_hidden_size = 8\n"
      "transpoints = 0,8,T\n[train]\nseq_len = 16\nmicro_batch = 1\nglobal_batch = 4\ndtype = float64\n"
      "[optimizer]\nwarmup_steps = 0\n";
  std::vector<std::string> words;
  std::istringstream in(mesh);
  for (std::string word; in >> word;) words.push_back("--parallel." + word);
  return parse_config_text(ini, "profile_test", words);
}

class ProfiledMeshes : public ::testing::TestWithParam<const char*> {};

TEST_P(ProfiledMeshes, HaveEachCallOfTheRecorderInTheProfileOnce) {
  Config config = small(GetParam());
  constexpr int kRanks = 4;
  config.parallel = resolve_parallel(config, kRanks);
  run_as_threads(kRanks, [&](Communicator& world) {
    Allocator memory;
    Profile profile{Stream{}};
    const Context context{{}, DType::f64, &memory, nullptr, &profile};
    const Mesh mesh(world, config.parallel);
    Engine engine(config, place(config, mesh), context);
    engine.initialise();
    const auto step = [&](std::int64_t number) {
      engine.step(number, [&](std::int64_t i) {
        return testing::batch_at(context, config, number, i * mesh.dp() + mesh.dp_index());
      });
    };
    world.recorder().set_profile(&profile);
    step(0);
    engine.finish();
    world.recorder().reset();
    profile.record();
    step(1);
    profile.pause();
    engine.finish();  // the gathered values are also calls of that step
    profile.end();
    world.recorder().set_profile(nullptr);

    std::map<Recorder::Key, Traffic> seen;
    double exposed = 0, last_end = 0;
    for (const auto& call : profile.calls()) {
      last_end = std::max(last_end, call->end.seconds);
      seen[{call->axis, std::string(call->purpose)}] += {.calls = 1, .bytes = call->bytes};
      exposed += call->exposed;
    }
    const auto table = world.recorder().table();
    check(seen.size() == table.size() && !table.empty(), "test", "{} purposes of {}", seen.size(),
          table.size());
    for (const auto& [key, traffic] : table)
      check(seen[key].calls == traffic.calls && seen[key].bytes == traffic.bytes, "test",
            "{} {}: expected {} calls and {} bytes, got {} and {}", key.first, key.second, traffic.calls,
            traffic.bytes, seen[key].calls, seen[key].bytes);

    // Regions are nested, and what they take for themselves and wait for is the step, to rounding.
    const RegionSpan& whole = profile.regions().at(0);
    double sum = 0;
    std::size_t layers = 0;
    for (const RegionSpan& r : profile.regions()) {
      check(r.begin.seconds <= r.end.seconds && r.own() > -1e-9, "test", "{}: own {}", name_of(r), r.own());
      if (r.parent >= 0) {
        const RegionSpan& parent = profile.regions()[static_cast<std::size_t>(r.parent)];
        check(parent.begin.seconds <= r.begin.seconds && r.end.seconds <= parent.end.seconds, "test",
              "{} is not within {}", name_of(r), name_of(parent));
      }
      sum += r.own() + r.exposed;
      layers += name_of(r).starts_with("layer ");
    }
    check(name_of(whole) == "step 2" && std::abs(sum - whole.seconds()) < 1e-9, "test", "{} of {}", sum,
          whole.seconds());
    const double waits_in =
        std::max(last_end, whole.end.seconds) - whole.begin.seconds;  // finish() waits too
    check(exposed <= waits_in + 1e-9 && exposed > 0, "test", "exposed {} of {}", exposed, waits_in);
    std::int64_t mine = 0;
    const Placement placement = place(config, mesh);
    for (int i = 0; i < placement.chunks(); ++i) mine += placement.chunk(i).end - placement.chunk(i).begin;
    const auto expected = static_cast<std::size_t>(2 * mine * config.train.global_batch / mesh.dp());
    check(layers == expected, "test", "{} layers, expected {}", layers, expected);
  });
}

INSTANTIATE_TEST_SUITE_P(All, ProfiledMeshes,
                         ::testing::Values("tp=2 cp=2", "pp=2 dp=2", "pp=2 virtual_stages=2 cp=2", "dp=4"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name)
                             if (c == ' ' || c == '=') c = '_';
                           return name;
                         });

TEST(ProfiledSteps, ChangeNoBit) {
  Config config = small("");
  config.parallel = resolve_parallel(config, 1);
  const auto losses = [&](bool is_profiled) {
    Allocator memory;
    Profile profile{Stream{}};
    const Context context{{}, DType::f64, &memory, nullptr, &profile};
    const auto world = self_communicator();
    const Mesh mesh(*world, config.parallel);
    Engine engine(config, place(config, mesh), context);
    engine.initialise();
    std::vector<double> out;
    for (std::int64_t step = 0; step < 4; ++step) {
      if (is_profiled && step > 0) profile.record();
      const StepResult result =
          engine.step(step, [&](std::int64_t i) { return testing::batch_at(context, config, step, i); });
      if (is_profiled && step > 0) profile.pause();
      out.push_back(result.loss), out.push_back(result.grad_norm);
    }
    return out;
  };
  EXPECT_EQ(losses(true), losses(false));
}

}  // namespace
}  // namespace transmamba
