// What several hosts are told apart by: names in errors, programs, clocks.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "launch/agreement.h"
#include "launch/host.h"
#include "parallel/comm/threads.h"
#include "tests/core/files.h"

namespace transmamba {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::error_of;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(HostNames, StandInErrorsOfRunsOnSeveral) {
  const std::vector<std::string> two = {"a", "a", "b"};
  EXPECT_EQ(name_host("rank 2: [data] broken", two), "rank 2 on b: [data] broken");
  EXPECT_THAT(name_host("rank 1: [config] no configuration file x.cfg", two),
              AllOf(HasSubstr("rank 1 on a: "), HasSubstr("x.cfg; every host has to see")));
  EXPECT_EQ(name_host("rank 7: who?", two), "rank 7: who?");
  EXPECT_EQ(name_host("rank 2: [data] no such file", {"a", "a", "a"}), "rank 2: [data] no such file");
  EXPECT_EQ(name_host("rank 0: x", {}), "rank 0: x");
}

std::vector<std::string> compared(const std::vector<HostFacts>& facts, const std::vector<double>& clocks) {
  std::vector<std::vector<std::string>> warnings(facts.size());
  run_as_threads(static_cast<int>(facts.size()), [&](Communicator& world) {
    const auto rank = static_cast<std::size_t>(world.rank());
    warnings[rank] = check_same_program(world, facts[rank], [&] { return clocks[rank]; });
  });
  return warnings[0];
}

TEST(Hosts, WithTheSameProgramAndClockAreLeftAlone) {
  EXPECT_THAT(compared({{"a", "1"}, {"a", "1"}, {"b", "1"}}, {1000, 1000.1, 1001}), IsEmpty());
}

TEST(Hosts, WithOtherProgramsAreNamed) {
  EXPECT_THAT(error_of([] {
                compared({{"a", "1"}, {"a", "1"}, {"b", "2"}}, {0, 0, 0});
              }),
              HasSubstr("[program] ranks 0 on a and 2 on b run different builds"));
}

TEST(Hosts, WithClocksApartAreNamedOnce) {
  EXPECT_THAT(compared({{"a", "1"}, {"b", "1"}, {"c", "1"}, {"b", "1"}}, {1000, 1090, 990, 1090}),
              ElementsAre(HasSubstr("host b is 90 s ahead of that of a"),
                          HasSubstr("host c is 10 s behind that of a")));
}

TEST(Hosts, KnowTheirProgram) {
  EXPECT_EQ(host_facts(), host_facts());
  EXPECT_GT(host_facts().program.size(), 16U);
}

}  // namespace
}  // namespace transmamba
