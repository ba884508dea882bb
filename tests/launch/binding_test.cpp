#include "launch/binding.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "tests/core/files.h"

namespace transmamba {
namespace {

using ::testing::ElementsAre;
using testing::Folder;
using ::testing::IsEmpty;
using testing::spill;

TEST(Cores, AreReadAsLinuxWritesThem) {
  EXPECT_THAT(parse_cores("0-3,8,10-11"), ElementsAre(0, 1, 2, 3, 8, 10, 11));
  EXPECT_THAT(parse_cores("5"), ElementsAre(5));
  EXPECT_THAT(parse_cores("4-5,0-1"), ElementsAre(0, 1, 4, 5));
  EXPECT_THAT(parse_cores("0-2,1-3"), ElementsAre(0, 1, 2, 3));
}

TEST(Cores, AreNoneInAnyOtherText) {
  for (const char* text : {"", "none", "1-", "-1", "3-1", "1,,2", "1,", "1 2", "0-99999999", "0x3"})
    EXPECT_THAT(parse_cores(text), IsEmpty()) << text;
}

TEST(Cores, AreWrittenAsTheyAreRead) {
  for (const char* text : {"", "7", "0-15,64-79", "0-1,3,5-6"})
    EXPECT_EQ(format_cores(parse_cores(text)), text);
}

/// Two sockets of four cores, with two GPUs each.
Host host_of(int local_rank, int local_size, const char* allowed = "0-7", bool is_shared = true) {
  const Cores first = parse_cores("0-3"), second = parse_cores("4-7");
  return {{first, first, second, second},
          parse_cores("0-7"),
          parse_cores(allowed),
          is_shared,
          local_rank,
          local_size};
}

TEST(Binding, TakesTheCoresNearTheRanksGpu) {
  const auto binding = choose_binding(host_of(2, 4));
  ASSERT_TRUE(binding);
  EXPECT_EQ(format_cores(binding->cores), "4-7");
  EXPECT_EQ(binding->ranks, 2);  // the other GPU of that socket has a rank too
}

TEST(Binding, CountsOnlyRanksThatAreThere) {
  EXPECT_EQ(choose_binding(host_of(0, 1))->ranks, 1);
  EXPECT_EQ(choose_binding(host_of(0, 3))->ranks, 2);
  EXPECT_EQ(choose_binding(host_of(2, 3))->ranks, 1);
  EXPECT_EQ(choose_binding(host_of(4, 6))->ranks, 4);  // GPUs are taken in turn: 0, 1, 4 and 5
}

TEST(Binding, StaysWithinAJobsCores) {
  const auto binding = choose_binding(host_of(1, 4, "2-5"));
  ASSERT_TRUE(binding);
  EXPECT_EQ(format_cores(binding->cores), "2-3");
}

TEST(Binding, LeavesWhatALauncherChose) {
  EXPECT_FALSE(choose_binding(host_of(0, 2, "0-1", false)));
  EXPECT_FALSE(choose_binding(host_of(0, 1, "4-7", false)));
  EXPECT_TRUE(choose_binding(host_of(0, 1, "0-7", false)));  // of one rank, with all cores
}

TEST(Binding, LeavesARankOfWhichNothingIsKnown) {
  EXPECT_FALSE(choose_binding(host_of(3, 4, "0-3")));  // no core near it is allowed
  Host host = host_of(0, 2);
  host.near[0] = {};
  EXPECT_FALSE(choose_binding(host));
  host.near.clear();
  EXPECT_FALSE(choose_binding(host));
  host = host_of(0, 2), host.online.clear();
  EXPECT_FALSE(choose_binding(host));
  // It may run anywhere, so it shares every other's cores.
  host = host_of(2, 3), host.near[0] = {};
  EXPECT_EQ(choose_binding(host)->ranks, 2);
}

TEST(Binding, ReadsWhatTheSystemSays) {
  const Folder folder;
  std::filesystem::create_directories(folder / "bus/pci/devices/0000:61:00.0");
  std::filesystem::create_directories(folder / "devices/system/cpu");
  spill(folder / "bus/pci/devices/0000:61:00.0/local_cpulist", "48-63\n");
  spill(folder / "devices/system/cpu/online", "0-127\n");
  EXPECT_EQ(format_cores(cores_near("0000:61:00.0", folder / "")), "48-63");
  EXPECT_THAT(cores_near("0000:62:00.0", folder / ""), IsEmpty());
  EXPECT_EQ(online_cores(folder / "").size(), 128U);
  EXPECT_FALSE(online_cores().empty());
}

TEST(Binding, HoldsForAThreadAndThoseThatItStarts) {
  std::thread([] {
    const Cores before = own_cores();
    ASSERT_FALSE(before.empty());
    const Cores last = {before.back()};
    ASSERT_TRUE(bind_to(last));
    EXPECT_EQ(own_cores(), last);
    std::thread([&] { EXPECT_EQ(own_cores(), last); }).join();
  }).join();
  EXPECT_FALSE(bind_to({}));
}

}  // namespace
}  // namespace transmamba
