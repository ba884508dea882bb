// The memory of a GPU, counted and handed out as there, on the CPU.
#include "core/allocator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <vector>

#include "core/arena.h"
#include "tests/core/files.h"

namespace transmamba {
namespace {

using ::testing::AllOf;
using testing::error_of;
using ::testing::HasSubstr;

/// What the driver gives on a GPU: `bytes` in all.
class FakeRange : public gpu::MemoryRange {
 public:
  explicit FakeRange(std::int64_t bytes) : memory_(static_cast<std::size_t>(bytes)), left_(bytes) {}
  std::byte* address() const override { return const_cast<std::byte*>(memory_.data()); }
  std::int64_t size() const override { return static_cast<std::int64_t>(memory_.size()); }
  std::int64_t granularity() const override { return 2 << 20; }
  bool extend(std::int64_t bytes) override {
    EXPECT_EQ(bytes % granularity(), 0);
    if (bytes > left_) return false;
    left_ -= bytes;
    return true;
  }

 private:
  std::vector<std::byte> memory_;
  std::int64_t left_;
};

TEST(Arena, TakesTheSmallestRunThatFitsAndJoinsNeighbours) {
  Arena arena;
  EXPECT_EQ(arena.take(1), -1);
  EXPECT_EQ(arena.missing(1), 256);
  arena.extend(4096);
  const std::int64_t a = arena.take(1000), b = arena.take(256), c = arena.take(500), d = arena.take(256);
  EXPECT_EQ((std::vector<std::int64_t>{a, b, c, d}), (std::vector<std::int64_t>{0, 1024, 1280, 1792}));
  arena.give_back(a), arena.give_back(c);
  EXPECT_EQ(arena.take(512), 1280);  // not the larger run in front, nor the one at the end
  EXPECT_EQ(arena.take(1024), 0);
  arena.give_back(0), arena.give_back(b), arena.give_back(1280);
  EXPECT_EQ(arena.take(1792), 0);  // three runs became one
  EXPECT_EQ(arena.taken(), 2048);
  EXPECT_EQ(arena.missing(4096), 4096 - 2048);  // the free end counts
  EXPECT_THAT(error_of([&] { arena.give_back(c); }), HasSubstr("nothing is taken at offset 1280"));
}

TEST(Arena, AgreesWithAModelOfEveryByteOverRandomRequests) {
  constexpr std::int64_t kUnit = Arena::kAlign;
  std::mt19937 random(1);
  Arena arena;
  std::vector<bool> used;
  std::map<std::int64_t, std::int64_t> taken;  // offset -> units
  const auto smallest_fit = [&](std::int64_t units) {
    std::int64_t best = -1, best_size = 0;
    for (std::size_t i = 0; i < used.size();) {
      std::size_t end = i;
      while (end < used.size() && !used[end]) ++end;
      const auto size = static_cast<std::int64_t>(end - i);
      if (size >= units && (best < 0 || size < best_size))
        best = static_cast<std::int64_t>(i), best_size = size;
      i = end + 1;
    }
    return best;
  };
  for (int round = 0; round < 20000; ++round) {
    const bool takes = taken.size() < 3 || (taken.size() < 60 && random() % 2 == 0);
    if (takes) {
      const std::int64_t units = 1 + static_cast<std::int64_t>(random() % (random() % 8 == 0 ? 300 : 20));
      const std::int64_t bytes = units * kUnit - static_cast<std::int64_t>(random() % kUnit);
      std::int64_t offset = arena.take(bytes);
      const std::int64_t expected = smallest_fit(units);
      ASSERT_EQ(offset, expected < 0 ? -1 : expected * kUnit);
      if (offset < 0) {
        arena.extend(arena.missing(bytes));
        used.resize(static_cast<std::size_t>(arena.size() / kUnit));
        offset = arena.take(bytes);
        ASSERT_EQ(offset + units * kUnit, arena.size());
      }
      for (std::int64_t i = 0; i < units; ++i) used[static_cast<std::size_t>(offset / kUnit + i)] = true;
      taken[offset] = units;
    } else {
      const auto it = std::next(taken.begin(), static_cast<std::ptrdiff_t>(random() % taken.size()));
      arena.give_back(it->first);
      for (std::int64_t i = 0; i < it->second; ++i)
        used[static_cast<std::size_t>(it->first / kUnit + i)] = false;
      taken.erase(it);
    }
    ASSERT_EQ(arena.taken(), std::count(used.begin(), used.end(), true) * kUnit);
  }
  for (const auto& [offset, units] : taken) arena.give_back(offset);
  EXPECT_EQ(arena.take(arena.size()), 0);
}

TEST(Arena, StaysCloseToWhatIsInUseOverTheStepsOfATraining) {
  Arena arena;
  std::mt19937 random(2);
  std::int64_t peak = 0;
  const auto take = [&](std::int64_t bytes) {
    std::int64_t offset = arena.take(bytes);
    if (offset < 0) arena.extend(arena.missing(bytes)), offset = arena.take(bytes);
    peak = std::max(peak, arena.taken());
    return offset;
  };
  for (int i = 0; i < 50; ++i) take(100000 + 777 * i);  // parameters
  for (int step = 0; step < 20; ++step) {
    const std::int64_t length = 20 + static_cast<std::int64_t>(random() % 5);  // varies, as validation does
    std::vector<std::int64_t> saved;
    for (std::int64_t layer = 0; layer < 24; ++layer) {
      const std::int64_t scratch = take(length * 30000);
      for (const int width : {1536, 4800, 4096, 96}) saved.push_back(take(length * width * 10));
      arena.give_back(scratch);
    }
    while (!saved.empty()) {
      const std::int64_t gradient = take(length * 40000);
      for (int i = 0; i < 4; ++i) arena.give_back(saved.back()), saved.pop_back();
      arena.give_back(gradient);
    }
  }
  EXPECT_LT(static_cast<double>(arena.size()), 1.15 * static_cast<double>(peak));
}

TEST(GpuMemory, GrowsWithoutMovingAndHandsBlocksOutAgain) {
  Allocator memory(std::make_unique<FakeRange>(200 << 20));
  auto a = memory.allocate(10 << 20), b = memory.allocate(30 << 20);
  EXPECT_EQ(memory.reserved_bytes(), 64 << 20);
  EXPECT_EQ(memory.bytes_in_use(), 40 << 20);
  auto c = memory.allocate(60 << 20);
  EXPECT_EQ(memory.reserved_bytes(), 128 << 20);
  EXPECT_EQ(c.get(), b.get() + (30 << 20));
  EXPECT_EQ((c.get() - a.get()) % 256, 0);
  const std::byte* const first = a.get();
  a.reset();
  EXPECT_EQ(memory.allocate(5 << 20).get(), first);
  EXPECT_EQ(memory.peak_bytes(), 100 << 20);
  memory.reset_peak();
  EXPECT_EQ(memory.peak_bytes(), 90 << 20);
  EXPECT_NE(memory.allocate(0).get(), nullptr);
}

TEST(GpuMemory, HasTheFingerprintOfWhatIsInUse) {
  Allocator memory(std::make_unique<FakeRange>(200 << 20));
  const auto a = memory.allocate(1000);
  const std::uint64_t before = memory.fingerprint();
  const std::byte* place = nullptr;
  for (int i = 0; i < 3; ++i) {  // the second time the range has grown
    auto b = memory.allocate(50 << 20), c = memory.allocate(100 << 20);
    EXPECT_NE(memory.fingerprint(), before);
    EXPECT_EQ(c.get(), i == 0 ? place = c.get() : place);
    b.reset(), c.reset();
    EXPECT_EQ(memory.fingerprint(), before);
  }
  const auto other = memory.allocate(1000);
  EXPECT_NE(memory.fingerprint(), before);
}

TEST(GpuMemory, CountsWorkspacesWhichAreHandedOutAgainAtOnce) {
  Allocator memory(std::make_unique<FakeRange>(200 << 20));
  ArenaScratch scratch(memory);
  const auto a = memory.allocate(10 << 20);
  const std::uint64_t before = memory.fingerprint();
  std::byte* const first = scratch.take(20 << 20);
  std::byte* const second = scratch.take(5 << 20);
  EXPECT_NE(first, second);
  EXPECT_EQ(memory.bytes_in_use(), 35 << 20);
  scratch.give_back(first);
  EXPECT_EQ(scratch.take(20 << 20), first);
  scratch.give_back(first), scratch.give_back(second);
  EXPECT_EQ(memory.bytes_in_use(), 10 << 20);
  EXPECT_EQ(memory.peak_bytes(), 35 << 20);
  EXPECT_EQ(memory.fingerprint(), before);
  EXPECT_THAT(error_of([&] { scratch.take(300 << 20); }), HasSubstr("out of GPU memory: 300.0 MiB wanted"));
}

TEST(GpuMemory, OutOfItSaysHowMuchIsWantedInUseAndThere) {
  Allocator memory(std::make_unique<FakeRange>(100 << 20));
  const auto a = memory.allocate(70 << 20);  // 64 MiB do not do, nor do 128: exactly what is missing
  EXPECT_EQ(memory.reserved_bytes(), 70 << 20);
  EXPECT_THAT(error_of([&] { memory.allocate(40 << 20); }),
              AllOf(HasSubstr("40.0 MiB wanted"), HasSubstr("70.0 MiB in use"), HasSubstr("100.0")));
  EXPECT_EQ(memory.bytes_in_use(), 70 << 20);
  EXPECT_NE(memory.allocate(30 << 20).get(), nullptr);
}

}  // namespace
}  // namespace transmamba
