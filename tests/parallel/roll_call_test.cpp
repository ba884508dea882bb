#include "parallel/comm/roll_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fmt/format.h>

#include <thread>

namespace transmamba {
namespace {

using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr auto kSilent = " is in no call and does not answer: it computes, hangs or is gone";

Place at(std::int64_t step, std::uint64_t group, std::int64_t number) {
  return {fmt::format("step {}: call {} of {}", step, number, group), {step, group, number}};
}

TEST(WhoIsWhere, BeginsWithThoseForWhomOthersWait) {
  const std::string text = who_is_where(
      {at(3, 1, 9), at(3, 2, 5), at(3, 1, 8), std::nullopt, at(2, 1, 9), at(3, 0, 1), at(3, 0, 2)});
  EXPECT_EQ(text, "\n  rank 3" + std::string(kSilent) +
                      "\n  rank 4 in step 2: call 9 of 1"  // in the step before
                      "\n  rank 2 in step 3: call 8 of 1"  // in the call before of that group
                      "\n  rank 0 in step 3: call 9 of 1"
                      "\n  rank 1 in step 3: call 5 of 2"  // another group's numbers are its own
                      "\n  rank 5 in step 3: call 1 of 0"  // messages are counted apart
                      "\n  rank 6 in step 3: call 2 of 0");
}

TEST(WhoIsWhere, NamesHostsWhereTheseAreSeveral) {
  EXPECT_EQ(who_is_where({at(1, 1, 1), std::nullopt}, {"h1", "h2"}),
            fmt::format("\n  rank 1 on h2{}\n  rank 0 on h1 in step 1: call 1 of 1", kSilent));
  EXPECT_THAT(who_is_where({at(1, 1, 1), std::nullopt}, {"h1", "h1"}), Not(HasSubstr("h1")));
}

TEST(WhoIsWhere, CountsThoseItHasNoLineFor) {
  std::vector<std::optional<Place>> places(100, at(4, 1, 7));
  places[99] = at(4, 1, 6), places[98] = std::nullopt;
  const std::string few = who_is_where(places);
  EXPECT_THAT(few, HasSubstr("\n  rank 98" + std::string(kSilent) + "\n  rank 99 in step 4: call 6 of 1\n"));
  EXPECT_THAT(few, EndsWith("\n  rank 5 in step 4: call 7 of 1\n  and 92 more ranks"));
  std::fill(places.begin(), places.begin() + 20, std::nullopt);
  EXPECT_THAT(who_is_where(places), EndsWith("\n  and 92 more ranks, 13 of them in no call"));
}

TEST(LastWords, AreSaidOnceByARankThatIsToldToEndAndStaysInACall) {
  bool told = false;
  std::vector<std::string> said;
  LastWords words(
      "rank 1 on h2", [&] { return told; }, [&](const std::string& text) { said.push_back(text); }, 0.05);
  const auto look = [&](double seconds) { words.look(seconds, [] { return at(12, 1, 5); }); };
  const auto pass = [] { std::this_thread::sleep_for(std::chrono::milliseconds(60)); };
  look(7);
  told = true;
  look(7);  // a long wait says nothing of how long it was told to end
  EXPECT_THAT(said, IsEmpty());
  pass();
  look(0.01);  // another call: it goes on
  EXPECT_THAT(said, IsEmpty());
  look(0.25), look(0.5);
  EXPECT_THAT(said,
              ElementsAre("rank 1 on h2 has waited 0.25 s in step 12: call 5 of 1, and is told to end"));
}

}  // namespace
}  // namespace transmamba
