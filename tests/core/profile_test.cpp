// Regions and calls of one rank, on the CPU's clock.
#include "core/profile.h"

#include <gtest/gtest.h>

#include <thread>

#include "tests/core/files.h"

namespace transmamba {
namespace {

using testing::error_of;

class ProfileTest : public ::testing::Test {
 protected:
  static void work(int milliseconds) { std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds)); }
  const RegionSpan& region(const std::string& name) const {
    for (const RegionSpan& r : profile.regions())
      if (name_of(r) == name) return r;
    throw Error("no region " + name);
  }
  Profile profile{Stream{}};
  Context context{{}, DType::f32, nullptr, nullptr, &profile};
};

TEST_F(ProfileTest, NothingIsRecordedOutsideOfItsSteps) {
  Context without;
  { const Region region(without, "a"); }
  { const Region region(context, "a"); }
  EXPECT_EQ(profile.call("tp", "p", "send"), nullptr);
  profile.record();
  { const Region region(context, "b"); }
  profile.pause();
  { const Region region(context, "c"); }
  ASSERT_EQ(profile.regions().size(), 1U);
  EXPECT_EQ(name_of(profile.regions()[0]), "b");
  EXPECT_TRUE(profile.calls().empty());
}

TEST_F(ProfileTest, WaitsAreTakenOnceAndOfCallsThatHaveEnded) {
  profile.record();
  const auto ended = profile.call("tp", "a", "send"), late = profile.call("tp", "b", "send");
  profile.pause();
  ended->ended(1, 4, 0.5);
  EXPECT_EQ(profile.take_waits(), 0.5);
  EXPECT_EQ(profile.take_waits(), 0);
  late->ended(1, 9, 0.25);
  EXPECT_EQ(profile.take_waits(), 0.25);
  EXPECT_TRUE(profile.calls().empty());
}

TEST_F(ProfileTest, NamesSayWhichOneOfAFamily) {
  profile.record();
  {
    const Region step(context, "", {"step", 7});
    const Region micro_batch(context, "forward", {"micro-batch", 3}, {"chunk", 1});
    const Region layer(context, "mixer forward", {"layer", 12});
  }
  profile.pause();
  EXPECT_EQ(name_of(profile.regions()[0]), "step 7");
  EXPECT_EQ(name_of(profile.regions()[1]), "micro-batch 3 chunk 1 forward");
  EXPECT_EQ(name_of(profile.regions()[2]), "layer 12 mixer forward");
  EXPECT_EQ(profile.regions()[2].parent, 1);
  EXPECT_EQ(profile.regions()[0].parent, -1);
}

TEST_F(ProfileTest, ARegionsOwnTimeIsWithoutThoseInItAndWithoutWaits) {
  const double before = Profile::now();
  profile.record();
  {
    const Region outer(context, "outer");
    work(20);
    {
      const Region inner(context, "inner");
      work(30);
      profile.charge(0.004);
    }
    profile.charge(0.001);
    { const HostRegion read(context, "read"); }
  }
  profile.pause();
  profile.charge(1);  // of nothing that is measured
  profile.end();
  const double after = Profile::now();
  const RegionSpan &outer = region("outer"), &inner = region("inner"), &read = region("read");
  EXPECT_LE(before, outer.begin.seconds);
  EXPECT_LE(outer.begin.seconds, inner.begin.seconds);
  EXPECT_LE(inner.end.seconds, read.begin.seconds);
  EXPECT_LE(read.end.seconds, outer.end.seconds);
  EXPECT_LE(outer.end.seconds, after);
  EXPECT_GE(inner.seconds(), 0.030);
  EXPECT_GE(outer.seconds(), 0.050);
  EXPECT_FALSE(read.on_host);  // of the CPU, which computes meanwhile nothing else
  EXPECT_DOUBLE_EQ(inner.own(), inner.seconds() - 0.004);
  EXPECT_DOUBLE_EQ(outer.own(), outer.seconds() - inner.seconds() - read.seconds() - 0.001);
}

TEST_F(ProfileTest, ACallThatEndsAfterItsStepIsKeptAndOneThatDoesNotEndIsLeftOut) {
  profile.record();
  const auto first = profile.call("tp", "first", "all_gather"), second = profile.call("cp", "second", "send"),
             third = profile.call("tp", "third", "send");
  second->ended(1, 2, 0.5);
  profile.pause();
  first->ended(3, 4, 0.25);
  profile.end();
  third->ended(5, 6, 0);  // its owner may still say so
  ASSERT_EQ(profile.calls().size(), 2U);
  EXPECT_EQ(profile.calls()[0]->purpose, "first");  // in the order in which they were started
  EXPECT_EQ(profile.calls()[0]->begin.seconds, 3);
  EXPECT_EQ(profile.calls()[0]->end.seconds, 4);
  EXPECT_EQ(profile.calls()[0]->exposed, 0.25);
  EXPECT_EQ(profile.calls()[1]->purpose, "second");
}

TEST_F(ProfileTest, AStepThatEndsWithinARegionIsAMistake) {
  profile.record();
  const auto inside = [&] {
    const Region region(context, "open");
    profile.pause();
  };
  EXPECT_EQ(error_of(inside), "[profile] a region is still open");
}

}  // namespace
}  // namespace transmamba
