#include "launch/call_bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "launch/measure.h"
#include "parallel/comm/threads.h"
#include "tests/core/files.h"

namespace transmamba {
namespace {

using Kind = Call::Kind;
using ::testing::AllOf;
using testing::error_of;
using ::testing::HasSubstr;

/// Does what another one does, and then adds 1 to one element of what came out, on one rank.
class Corrupting : public Communicator {
 public:
  Corrupting(Communicator& inner, std::int64_t element)
      : Communicator(inner.axis(), inner.rank(), inner.size(), nullptr), inner_(inner), element_(element) {}

 private:
  std::unique_ptr<Pending::Work> start(const Call& call) override {
    if (const auto work = start_on(inner_, call)) work->wait();
    const View out = call.kind == Kind::exchange ? call.incoming[0].data : call.out;
    if (rank() == 1 && out && out.dtype() == DType::f32 && element_ < out.numel())
      out.ptr<float>()[element_] += 1;
    return nullptr;
  }
  std::unique_ptr<Communicator> make_split(std::string, const std::vector<int>&, int) override {
    fail(axis(), "split: not asked for here");
  }
  Communicator& inner_;
  const std::int64_t element_;
};

struct Rank {
  Allocator memory;
  Context context;
  Tensor x, y;
  explicit Rank(std::int64_t count) {
    context.memory = &memory;
    x = context.empty({count}), y = context.empty({count});
  }
};

TEST(CallBench, FindsResultsRightOfEveryKindAndSize) {
  for (const int ranks : {2, 3})
    run_as_threads(ranks, [](Communicator& world) {
      const Rank rank(2400006);  // beyond what the numbers repeat after
      const CallBench bench(rank.context, world, world, rank.x, rank.y, true);
      for (const Kind kind : kMeasuredKinds)
        for (const std::int64_t bytes : {24, 120000, 9600024}) EXPECT_NO_THROW(bench.verify(kind, bytes));
    });
}

TEST(CallBench, FindsOneElementThatIsWrongOnOneRank) {
  for (const Kind kind : kMeasuredKinds)
    run_as_threads(3, [&](Communicator& world) {
      const Rank rank(3000);
      Corrupting corrupting(world, 777);
      const CallBench bench(rank.context, corrupting, world, rank.x, rank.y, true);
      const std::string error = error_of([&] { bench.verify(kind, 12000); });
      EXPECT_THAT(error, AllOf(HasSubstr("rank 1: [bench] " + std::string(to_string(kind))),
                               HasSubstr("12000 bytes on axis world"), HasSubstr("element 777 of")));
    });
}

TEST(CallBench, FindsAWrongElementFarIntoABuffer) {
  run_as_threads(2, [&](Communicator& world) {
    const Rank rank(2400000);
    Corrupting corrupting(world, 2399999);
    const CallBench bench(rank.context, corrupting, world, rank.x, rank.y, true);
    EXPECT_THAT(error_of([&] { bench.verify(Kind::all_reduce, 9600000); }),
                HasSubstr("element 2399999 of 2400000"));
  });
}

TEST(CallBench, TakesOnlySizesThatCanBeSharedOut) {
  run_as_threads(3, [](Communicator& world) {
    const Rank rank(30);
    const CallBench bench(rank.context, world, world, rank.x, rank.y, true);
    EXPECT_EQ(bench.fitting(1), 12);
    EXPECT_EQ(bench.fitting(12), 12);
    EXPECT_EQ(bench.fitting(13), 24);
    EXPECT_THAT(error_of([&] { bench.verify(Kind::send, 16); }), HasSubstr("a multiple of 12"));
    EXPECT_THAT(error_of([&] { bench.verify(Kind::send, 132); }), HasSubstr("at most 120"));
  });
}

TEST(CallBench, TimesACallOnTheSlowestRank) {
  run_as_threads(2, [](Communicator& world) {
    const Rank rank(1024);
    const CallBench bench(rank.context, world, world, rank.x, rank.y, true);
    const CallTime time = bench.time(Kind::all_gather, 4096, 1e-3, true);
    EXPECT_EQ(time.ranks, 2);
    EXPECT_GT(time.seconds, 0);
    EXPECT_FALSE(time.bare.has_value());  // threads have no library of their own
  });
}

TEST(CallBench, CountsBandwidthAsNcclTests) {
  // doc/PERFORMANCE.md there; 8 ranks, a buffer of 1e9 bytes, a second.
  const auto bus = [](Kind kind) { return CallTime{kind, 8, 1000000000, 1.0}.bus_rate(); };
  EXPECT_DOUBLE_EQ(bus(Kind::all_reduce), 1.75e9);
  EXPECT_DOUBLE_EQ(bus(Kind::all_gather), 0.875e9);
  EXPECT_DOUBLE_EQ(bus(Kind::reduce_scatter), 0.875e9);
  EXPECT_DOUBLE_EQ(bus(Kind::exchange), 0.875e9);
  EXPECT_DOUBLE_EQ(bus(Kind::broadcast), 1e9);
  EXPECT_DOUBLE_EQ(bus(Kind::send), 1e9);
  const CallTime time{Kind::all_reduce, 2, 4000, 2e-6, 1e-6};
  EXPECT_DOUBLE_EQ(time.algorithm_rate(), 2e9);
  EXPECT_DOUBLE_EQ(time.bus_rate(), 2e9);
  EXPECT_DOUBLE_EQ(time.bare_bus_rate(), 4e9);
}

TEST(CallBench, MakesLinksOfTimes) {
  // 4 ranks: 6 steps of 1 us, 1.5 bytes sent for each, at 1 GB/s; send: 1 step, and no line.
  std::vector<CallTime> times, tried;
  for (const std::int64_t bytes : {4096, 65536, 1048576})
    times.push_back({Kind::all_reduce, 4, bytes, 6e-6 + 1.5e-9 * static_cast<double>(bytes)});
  times.push_back({Kind::send, 4, 1000, 1e-6}), times.push_back({Kind::send, 4, 2000, 10e-6});
  times.push_back({Kind::send, 4, 4000, 11e-6}), times.push_back({Kind::broadcast, 4, 4000, 1.0});
  tried.push_back({Kind::all_reduce, 4, 32768, 2 * (6e-6 + 1.5e-9 * 32768)});
  std::vector<FitCheck> checks;
  const Links links = fit_links(times, tried, checks);
  EXPECT_EQ(links.ranks, 4);
  EXPECT_NEAR(links.all_reduce.latency, 1e-6, 1e-12);
  EXPECT_NEAR(links.all_reduce.byte, 1e-9, 1e-15);
  EXPECT_NEAR(all_reduce_seconds(links, 4, 65536), 6e-6 + 1.5e-9 * 65536, 1e-11);
  EXPECT_NEAR(all_reduce_seconds(links, 2, 65536), 2e-6 + 1e-9 * 65536, 1e-11);
  EXPECT_LT(off_a_line(links.all_reduce), 1e-6);
  EXPECT_GT(off_a_line(links.send), 0.1);
  EXPECT_NEAR(links.send.seconds(2000, 1), 10e-6, 1e-15);
  EXPECT_NEAR(links.send.seconds(3000, 1), 10.5e-6, 1e-15);
  ASSERT_EQ(checks.size(), 1U);
  EXPECT_NEAR(checks[0].predicted / checks[0].measured, 0.5, 1e-6);
}

}  // namespace
}  // namespace transmamba
