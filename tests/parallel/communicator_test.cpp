// Ranks as threads keep the contract, and what cannot work ends with an Error that says where.
#include <gmock/gmock.h>

#include <chrono>

#include "parallel/comm/agree.h"
#include "parallel/comm/threads.h"
#include "tests/parallel/communicator_contract.h"

namespace transmamba {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

template <class T>
View view(std::vector<T>& x) {
  return {reinterpret_cast<std::byte*>(x.data()), dtype_of<T>(), {static_cast<std::int64_t>(x.size())}};
}

std::string here(int line) { return "tests/parallel/communicator_test.cpp:" + std::to_string(line); }

/// What a run ends with; "" where all is well.
std::string error_of(int ranks, const std::function<void(Communicator&)>& rank_main) {
  try {
    run_as_threads(ranks, rank_main);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

class Contract : public ::testing::TestWithParam<int> {};

TEST_P(Contract, HoldsOverThreads) {
  for (const ContractTest& test : contract_tests())
    EXPECT_EQ(error_of(GetParam(), test.run), "") << test.name;
}
INSTANTIATE_TEST_SUITE_P(Ranks, Contract, ::testing::Values(1, 2, 3, 4, 5, 6, 7, 8));

TEST(Mismatch, OfKindsNamesBothCalls) {
  const int line = __LINE__;
  const std::string error = error_of(3, [](Communicator& world) {
    std::vector<float> x(4);
    if (world.rank() == 1)
      world.barrier("rest");
    else
      world.all_reduce("gradients", view(x));
  });
  EXPECT_THAT(error, AllOf(HasSubstr("on rank 1 barrier for rest at " + here(line + 4)),
                           HasSubstr("all_reduce of 16 bytes (4 float32) for gradients at " + here(line + 6)),
                           HasSubstr("[world]")));
}

TEST(Mismatch, OfSizesTypesPurposesRootsAndReductionsIsNoticed) {
  const auto differs = [](auto call) {
    return error_of(2, [&](Communicator& world) { call(world, world.rank() == 1); });
  };
  std::vector<std::vector<float>> x(2, std::vector<float>(8));
  std::vector<double> y(4);
  const auto mine = [&](bool odd) -> std::vector<float>& { return x[odd]; };
  EXPECT_THAT(differs([&](Communicator& world, bool odd) {
                world.all_reduce("x", view(mine(odd)).slice(0, 0, odd ? 4 : 8));
              }),
              AllOf(HasSubstr("32 bytes"), HasSubstr("16 bytes")));
  EXPECT_THAT(differs([&](Communicator& world, bool odd) {
                world.all_reduce("x", odd ? view(y) : view(mine(odd)).slice(0, 0, 4));
              }),
              AllOf(HasSubstr("4 float64"), HasSubstr("4 float32")));
  EXPECT_THAT(differs([&](Communicator& world, bool odd) {
                world.all_reduce(odd ? "loss" : "norm", view(mine(odd)));
              }),
              AllOf(HasSubstr("for loss"), HasSubstr("for norm")));
  EXPECT_THAT(differs([&](Communicator& world, bool odd) { world.broadcast("x", view(mine(odd)), odd); }),
              AllOf(HasSubstr("from rank 0"), HasSubstr("from rank 1")));
  EXPECT_THAT(differs([&](Communicator& world, bool odd) {
                world.all_reduce("x", view(mine(odd)), odd ? Reduce::max : Reduce::sum);
              }),
              HasSubstr("with max"));
  EXPECT_THAT(differs([&](Communicator& world, bool odd) {
                const Outgoing out[] = {{1 - world.rank(), view(mine(odd)).slice(0, 0, 4)}};
                std::vector<float> in(odd ? 5 : 4);
                const Incoming incoming[] = {{1 - world.rank(), view(in)}};
                world.exchange("uneven", out, incoming);
              }),
              HasSubstr("rank 0 sends 16 bytes to rank 1"));
  EXPECT_THAT(differs([&](Communicator& world, bool odd) {
                if (odd)
                  world.send("m", view(mine(odd)), 0, 3);
                else
                  world.receive("m", view(mine(odd)).slice(0, 0, 2), 1, 3);
              }),
              AllOf(HasSubstr("send of 32 bytes"), HasSubstr("receive of 8 bytes")));
}

TEST(Deadlock, AcrossGroupsNamesWhereEachRankIs) {
  int row_line = 0, column_line = 0;
  const std::string error = error_of(4, [&](Communicator& world) {
    const auto row = world.split("row", world.rank() / 2, 0),
               column = world.split("column", world.rank() % 2, 0);
    std::vector<float> x(1);
    // A cycle: each rank waits in a group whose other rank waits in another group.
    if (world.rank() == 0) row_line = __LINE__ + 2, column_line = __LINE__ + 4;
    if (world.rank() == 0 || world.rank() == 3)
      row->all_reduce("rows", view(x));
    else
      column->all_reduce("columns", view(x));
  });
  EXPECT_THAT(error,
              AllOf(HasSubstr("for ever"), HasSubstr("for rows at " + here(row_line) + " of group row"),
                    HasSubstr("for columns at " + here(column_line)), HasSubstr("rank 3 in all_reduce")));
}

TEST(Deadlock, OfReceivesThatNobodySendsIsFound) {
  const std::string error = error_of(3, [](Communicator& world) {
    std::vector<float> x(1);
    if (world.rank() < 2) world.receive("never", view(x), 2, 11);
  });
  EXPECT_THAT(error, AllOf(HasSubstr("rank 0 in receive"), HasSubstr("rank 1 in receive"),
                           HasSubstr("tag 11"), HasSubstr("rank 2 has ended")));
  EXPECT_THAT(error_of(1,
                       [](Communicator& world) {
                         std::vector<float> x(1);
                         world.receive("own", view(x), 0, 1);
                       }),
              HasSubstr("has not sent"));
}

TEST(Failure, OfOneRankEndsAllWithItsMessage) {
  for (int thrower : {0, 3}) {
    const std::string error = error_of(5, [&](Communicator& world) {
      world.barrier("start");
      check(world.rank() != thrower, "data", "file {} is broken", 7);
      for (int i = 0; i < 100; ++i) world.barrier("go on");
    });
    EXPECT_EQ(error, "rank " + std::to_string(thrower) + ": [data] file 7 is broken");
  }
  EXPECT_THAT(error_of(2,
                       [](Communicator& world) {
                         if (world.rank() == 1) throw std::out_of_range("not ours");
                         world.barrier("alone");
                       }),
              HasSubstr("rank 1: not ours"));
}

TEST(Failure, OfARankThatEndsEarlyNamesThoseWhoWait) {
  const int line = __LINE__;
  const std::string error = error_of(4, [](Communicator& world) {
    std::vector<float> x(1);
    if (world.rank() != 2) world.all_reduce("loss", view(x));
  });
  EXPECT_THAT(error,
              AllOf(HasSubstr("rank 2 has ended"), HasSubstr("rank 0 in all_reduce"),
                    HasSubstr("rank 3 in all_reduce of 4 bytes (1 float32) for loss at " + here(line + 3))));
}

TEST(Failure, PassesThroughCallsThatAreUnderWay) {
  const std::string error = error_of(2, [](Communicator& world) {
    std::vector<float> x(1);
    const Pending pending = world.start_all_reduce("never met", view(x));
    check(world.rank() != 0, "step", "went wrong");
    world.barrier("rest");
  });
  EXPECT_THAT(error, AnyOf(HasSubstr("went wrong"), HasSubstr("never met")));
}

TEST(Arguments, ThatCannotBeRightAreRefusedWithNumbers) {
  const auto world = self_communicator("tp");
  std::vector<float> x(6), y(6);
  const auto refused = [](auto&& call) -> std::string {
    try {
      call();
    } catch (const Error& error) {
      return error.what();
    }
    return "nothing was refused";
  };
  EXPECT_THAT(refused([&] { world->all_gather("g", view(x).slice(0, 0, 3), view(y)); }),
              HasSubstr("got 6 and 3"));
  EXPECT_THAT(refused([&] { world->all_gather("g", view(x).slice(0, 1, 3), view(x).slice(0, 0, 2)); }),
              HasSubstr("not part 0"));
  EXPECT_THAT(refused([&] { world->broadcast("b", view(x), 1); }),
              HasSubstr("expected a rank in [0, 1), got 1"));
  EXPECT_THAT(refused([&] { world->send("s", view(x), 0, 1 << 19); }), HasSubstr("[0, 524288), got 524288"));
  EXPECT_THAT(refused([&] { world->all_reduce("r", View(view(x).raw(), DType::bf16, {6})); }),
              HasSubstr("bfloat16"));
  EXPECT_THAT(refused([&] { world->all_reduce("r", view(x).split(0, 2).slice(1, 0, 1)); }),
              HasSubstr("contiguous"));
  const Outgoing twice[] = {{0, view(x)}, {0, view(x)}};
  EXPECT_THAT(refused([&] { world->exchange("e", twice, {}); }), HasSubstr("got two of 0"));
  const Outgoing out[] = {{0, view(x)}};
  EXPECT_THAT(refused([&] { world->exchange("e", out, {}); }), HasSubstr("sends 24 bytes"));
  EXPECT_THAT(refused([&] { (void)world->split("dp", -1, 0); }), HasSubstr("got -1"));
  EXPECT_THAT(refused([&] { run_as_threads(0, [](Communicator&) {}); }), HasSubstr("got 0"));
}

TEST(Agreement, GathersTextsOfAnyLength) {
  for (int ranks : {1, 5})
    run_as_threads(ranks, [](Communicator& world) {
      const auto mine = [](int rank) { return std::string(static_cast<std::size_t>(rank) * 3, 'a') + "\n"; };
      const auto texts = gather_text(world, "texts", mine(world.rank()));
      ASSERT_EQ(texts.size(), static_cast<std::size_t>(world.size()));
      for (int rank = 0; rank < world.size(); ++rank)
        EXPECT_EQ(texts[static_cast<std::size_t>(rank)], mine(rank));
      EXPECT_EQ(gather_text(world, "nothing", "")[0], "");
    });
}

TEST(Agreement, ThrowsTheSameEverywhere) {
  run_as_threads(4, [](Communicator& world) {
    const auto error_where = [&](auto fails, bool with_rank) -> std::string {
      try {
        agree(world, "open files", [&] {
          check(!fails(world.rank()), "data", "file is broken{}",
                with_rank ? std::to_string(world.rank()) : "");
        });
      } catch (const Error& error) {
        return error.what();
      }
      return "";
    };
    EXPECT_EQ(error_where([](int) { return false; }, false), "");
    EXPECT_EQ(error_where([](int) { return true; }, false), "[data] file is broken");
    EXPECT_EQ(error_where([](int) { return true; }, true), "rank 0: [data] file is broken0");
    EXPECT_EQ(error_where([](int rank) { return rank >= 2; }, true), "rank 2: [data] file is broken2");
  });
}

TEST(Threads, MakeSmallCallsWithoutSleeping) {
  run_as_threads(8, [](Communicator& world) {
    std::vector<double> x(16);
    const auto start = std::chrono::steady_clock::now();
    constexpr int kCalls = 2000;
    for (int i = 0; i < kCalls; ++i) world.all_reduce("small", view(x));
    const std::chrono::duration<double, std::micro> time = std::chrono::steady_clock::now() - start;
    // Some 20 us each on two idle cores; a call that slept or polled on a clock would need far more than
    // this.
    EXPECT_LT(time.count() / kCalls, 5000) << "us a call";
  });
}

}  // namespace
}  // namespace transmamba
