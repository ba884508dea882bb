#include "kernels/cpu/parallel_for.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace transmamba::cpu {
namespace {

Stream on(int threads) { return {Device::cpu, threads, nullptr}; }

TEST(ParallelFor, DoesEachItemOnce) {
  for (int threads : {1, 2, 3, 8})  // pools of changing size
    for (std::int64_t n : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> done(static_cast<std::size_t>(n));
      parallel_for(n, on(threads), [&](std::int64_t i) { ++done[static_cast<std::size_t>(i)]; });
      for (const auto& count : done) EXPECT_EQ(count, 1);
    }
}

TEST(ParallelFor, ManyShortRoundsNeitherHangNorLoseWork) {
  std::int64_t sum = 0;
  std::vector<std::int64_t> parts(4);
  for (int round = 0; round < 20000; ++round) {
    parallel_for(round % 5, on(4), [&](std::int64_t i) { parts[static_cast<std::size_t>(i)] = i + round; });
    for (std::int64_t i = 0; i < round % 5; ++i) sum += parts[static_cast<std::size_t>(i)] - i - round;
  }
  EXPECT_EQ(sum, 0);
}

TEST(ParallelFor, BlocksCoverTheRange) {
  std::vector<int> seen(103);
  parallel_blocks(103, 10, on(3), [&](std::int64_t begin, std::int64_t end) {
    EXPECT_LE(end - begin, 10);
    for (std::int64_t i = begin; i < end; ++i) ++seen[static_cast<std::size_t>(i)];
  });
  EXPECT_EQ(seen, std::vector<int>(103, 1));
}

TEST(ParallelFor, TheFirstExceptionArrivesAndThePoolGoesOn) {
  for (int threads : {1, 4}) {
    EXPECT_THROW(parallel_for(100, on(threads), [](std::int64_t i) { check(i != 37, "test", "item {}", i); }),
                 Error);
    std::atomic<int> count = 0;
    parallel_for(100, on(threads), [&](std::int64_t) { ++count; });
    EXPECT_EQ(count, 100);
  }
}

TEST(ParallelFor, MayBeCalledFromAnItem) {
  std::atomic<int> count = 0;
  parallel_for(6, on(3), [&](std::int64_t) { parallel_for(5, on(3), [&](std::int64_t) { ++count; }); });
  EXPECT_EQ(count, 30);
}

TEST(ParallelFor, EveryCallingThreadHasItsOwnWorkers) {
  std::vector<int> results(4);
  std::vector<std::thread> callers;
  for (std::size_t c = 0; c < results.size(); ++c)
    callers.emplace_back([&, c] {
      std::atomic<int> count = 0;
      for (int round = 0; round < 500; ++round) parallel_for(8, on(3), [&](std::int64_t) { ++count; });
      results[c] = count;
    });
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(results, std::vector<int>(4, 4000));
}

}  // namespace
}  // namespace transmamba::cpu
