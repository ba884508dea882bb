// What a profile says of made-up ranks, against numbers by hand.
#include "launch/profile_report.h"

#include <gmock/gmock.h>

#include <map>
#include <nlohmann/json.hpp>

#include "launch/trace.h"

namespace transmamba {
namespace {

using ::testing::HasSubstr;
using Call = RankProfile::Call;
using Region = RankProfile::Region;

Region step(double begin, double end, double exposed, double own) {
  return {"step", "step 4", true, false, begin, end, exposed, own};
}
Region region(const char* family, double begin, double end, double exposed, double own) {
  return {family, std::string("layer 1 ") + family, false, false, begin, end, exposed, own};
}

/// Two ranks, of which the second comes to the sum half a second late, and which then takes 0.1 s.
std::vector<RankProfile> two_ranks() {
  RankProfile a, b;
  a.regions = {step(0, 2, 0, 0.25), region("mixer forward", 0, 1.75, 0.6, 1.15)};
  b.regions = {step(0, 4, 0.3, 1), region("mixer forward", 0, 1.5, 0.1, 1.4),
               region("mlp forward", 1.5, 2.7, 0, 1.2)};
  const Call sum{"tp", "sums", "all_reduce", "world/0.0", -1, -1, 1000, 1000, 1, 0.5, 1.1, 0.6};
  a.calls = {sum};
  b.calls = {sum};
  b.calls[0].begin = 1.0, b.calls[0].exposed = 0.1;
  // A message that a sends at once and to b at 2.0, which waits for it since 1.8; it is there at 2.2.
  a.calls.push_back({"pp", "stage output", "send", "world/1.0", 0, 1, 4000, 4000, 1, 2.0, 2.001, 0.001});
  b.calls.push_back({"pp", "stage output", "receive", "world/1.0", 0, 1, 0, 4000, 1, 1.8, 2.2, 0.3});
  return {a, b};
}

ProfileSummary summary_of(const std::vector<RankProfile>& ranks) {
  Machine machine = Machine::builtin_cpu();
  machine.ranks_per_host = 2;
  machine.within_host.all_reduce.byte = 1e-5, machine.between_hosts.send.byte = 1e-6;
  ParallelConfig degrees;
  degrees.tp = 2, degrees.dp = 1, degrees.pp = 2;
  return summarise(ranks, 4, machine, degrees);
}

const ProfiledCalls& line(const ProfileSummary& summary, const std::string& kind) {
  for (const ProfiledCalls& c : summary.calls)
    if (c.kind == kind) return c;
  throw Error("no line of " + kind);
}

TEST(ProfileReport, CountsBandwidthFromWhenAllRanksAreThere) {
  const ProfileSummary s = summary_of(two_ranks());
  ASSERT_EQ(s.calls.size(), 3U);
  const ProfiledCalls &sum = line(s, "all_reduce"), &send = line(s, "send"), &receive = line(s, "receive");
  EXPECT_DOUBLE_EQ(sum.calls, 1);
  EXPECT_DOUBLE_EQ(sum.bytes, 1000);
  EXPECT_NEAR(sum.seconds, (0.6 + 0.1) / 2, 1e-12);
  EXPECT_NEAR(sum.transfer, 0.1, 1e-12);
  EXPECT_NEAR(sum.algorithm_bandwidth, 1e4, 1e-6);
  EXPECT_NEAR(sum.bus_bandwidth, 1e4, 1e-6);
  EXPECT_NEAR(sum.link_bandwidth, 1e5, 1e-6);  // of a host
  EXPECT_NEAR(sum.exposed, 0.35, 1e-12);
  EXPECT_NEAR(sum.longest_exposed, 0.6, 1e-12);
  for (const ProfiledCalls* message : {&send, &receive}) {
    EXPECT_DOUBLE_EQ(message->calls, 0.5);  // one side each
    EXPECT_NEAR(message->transfer, 0.2 / 2, 1e-12);
    EXPECT_NEAR(message->bus_bandwidth, 4000 / 0.2, 1e-6);
  }
  EXPECT_DOUBLE_EQ(receive.bytes, 0);
}

TEST(ProfileReport, BelievesTheShorterSideOfAMessageBetweenGpus) {
  std::vector<RankProfile> ranks = two_ranks();
  for (RankProfile& rank : ranks) rank.calls[1].on_gpu = true;
  EXPECT_NEAR(line(summary_of(ranks), "receive").bus_bandwidth, 4000 / 0.001, 1e-3);
}

TEST(ProfileReport, KnowsTheBusBandwidthOfEachKind) {
  // 4 ranks, 8e9 bytes in 0.1 s: 80 GB/s, and what links carry of it.
  const std::map<std::string, double> factors = {
      {"all_reduce", 1.5}, {"all_gather", 0.75}, {"reduce_scatter", 0.75}, {"broadcast", 1}, {"exchange", 1}};
  std::vector<RankProfile> ranks(4);
  for (RankProfile& rank : ranks) {
    rank.regions = {step(0, 1, 0, 1)};
    for (const auto& [kind, factor] : factors)
      rank.calls.push_back({"world", "all", kind, "world", -1, -1, 0, 8'000'000'000, factor, 0.2, 0.3, 0});
  }
  const ProfileSummary s = summary_of(ranks);
  for (const auto& [kind, factor] : factors) {
    EXPECT_NEAR(line(s, kind).algorithm_bandwidth, 80e9, 1) << kind;
    EXPECT_NEAR(line(s, kind).bus_bandwidth, factor * 80e9, 1) << kind;
  }
}

TEST(ProfileReport, RanksWithNothingToSayInAnExchangeHaveNoPartInItsBandwidth) {
  std::vector<RankProfile> ranks(4);
  for (std::size_t rank = 0; rank < 4; ++rank) {
    const bool speaks = rank < 2;
    ranks[rank].regions = {step(0, 1, 0, 1)};
    ranks[rank].calls = {
        {"cp", "halo", "exchange", "cp", -1, -1, 0, speaks ? 1000 : 0, 1, 0.2, speaks ? 0.3 : 0.2, 0}};
  }
  const ProfiledCalls exchange = line(summary_of(ranks), "exchange");
  EXPECT_NEAR(exchange.bus_bandwidth, 1000 / 0.1, 1e-6);
  EXPECT_NEAR(exchange.transfer, 0.1 / 2, 1e-12);  // mean over ranks
}

TEST(ProfileReport, MeetsTheCallsOfOneGroupInTheirOrder) {
  std::vector<RankProfile> ranks(4);
  // Two groups of two; the second call of the first takes 0.2, all others 0.1; one rank of each waits for it.
  for (int rank = 0; rank < 4; ++rank)
    for (int i = 0; i < 2; ++i) {
      const double takes = rank < 2 && i == 1 ? 0.2 : 0.1, late = rank % 2 == 0 ? 0 : 0.5, end = 1 + i;
      ranks[static_cast<std::size_t>(rank)].calls.push_back({"tp", "sums", "all_reduce",
                                                             rank < 2 ? "world/0.0" : "world/0.1", -1, -1,
                                                             100, 100, 1, end - takes - late, end, 0});
    }
  ranks[0].regions = {step(0, 1, 0, 1)};
  EXPECT_NEAR(line(summary_of(ranks), "all_reduce").transfer, (0.1 + 0.2 + 0.1 + 0.1) / 2, 1e-12);
}

TEST(ProfileReport, SharesAStepOutToComputingWaitingAndTheRest) {
  const ProfileSummary s = summary_of(two_ranks());
  EXPECT_EQ(s.ranks, 2);
  EXPECT_EQ(s.steps, 1);
  EXPECT_NEAR(s.seconds, 3, 1e-12);
  EXPECT_NEAR(s.compute, (1.15 + 1.4 + 1.2) / 2, 1e-12);
  EXPECT_NEAR(s.exposed, (0.6 + 0.3 + 0.1) / 2, 1e-12);
  EXPECT_NEAR(s.rest, (0.25 + 1) / 2, 1e-12);
  ASSERT_EQ(s.regions.size(), 2U);
  EXPECT_EQ(s.regions[0].family, "mixer forward");
  EXPECT_NEAR(s.regions[0].own, 1.275, 1e-12);
  EXPECT_NEAR(s.regions[0].seconds, 1.625, 1e-12);
  EXPECT_DOUBLE_EQ(s.regions[1].calls, 0.5);
  const std::string table = format_table(s);
  EXPECT_THAT(table, HasSubstr("profile of steps 4 to 4, mean over ranks\n"
                               "a step                       3000.000 ms  100.0%\n"
                               "  computing                  1875.000 ms   62.5%\n"
                               "  waiting for other ranks     500.000 ms   16.7%\n"
                               "  rest                        625.000 ms   20.8%\n"));
  EXPECT_THAT(table,
              HasSubstr("mixer forward                  1.0   1625.000   1275.000    350.000   42.5%"));
  const auto json = nlohmann::json::parse(to_json(s));
  EXPECT_NEAR(json["compute_seconds_per_step"].get<double>() +
                  json["exposed_seconds_per_step"].get<double>() +
                  json["rest_seconds_per_step"].get<double>(),
              3, 1e-12);
  EXPECT_EQ(json["communication"].size(), 3U);
}

TEST(RankProfile, ComesThroughAsText) {
  for (const RankProfile& rank : two_ranks()) {
    const RankProfile copy = RankProfile::from_text(rank.to_text());
    EXPECT_EQ(copy.to_text(), rank.to_text());
    ASSERT_EQ(copy.calls.size(), rank.calls.size());
    EXPECT_EQ(copy.calls[1].kind, rank.calls[1].kind);
    EXPECT_NEAR(copy.calls[1].begin, rank.calls[1].begin, 1e-9);
    EXPECT_EQ(copy.regions[0].is_step, true);
  }
}

TEST(ChromeTrace, HasALaneForEachKindOfThing) {
  std::vector<RankProfile> ranks = two_ranks();
  ranks[0].calls.push_back(ranks[0].calls[0]);  // at the same time: it needs a lane of its own
  ranks[0].calls.back().purpose = "a \"quoted\" name";
  ranks[0].regions.push_back({"read data", "read data", false, true, 0.25, 0.5, 0, 0.25});
  const auto json = nlohmann::json::parse(chrome_trace(ranks));
  std::map<std::pair<int, int>, std::string> lanes;
  std::map<std::string, int> count;
  for (const auto& event : json["traceEvents"]) {
    if (event["name"] == "thread_name") lanes[{event["pid"], event["tid"]}] = event["args"]["name"];
    if (event["ph"] == "X") ++count[event["name"]];
  }
  std::map<std::string, int> named;
  for (const auto& event : json["traceEvents"])
    if (event["ph"] == "X") ++named[lanes.at({event["pid"], event["tid"]})];
  const std::map<std::string, int> expected = {{"compute", 5},
                                               {"host", 1},
                                               {"communication tp", 2},
                                               {"communication tp (2)", 1},
                                               {"communication pp", 2}};
  EXPECT_EQ(named, expected);
  EXPECT_EQ(count["tp all_reduce: a \"quoted\" name"], 1);
  EXPECT_EQ(count["step 4"], 2);
  EXPECT_EQ(count["layer 1 mlp forward"], 1);
  for (const auto& event : json["traceEvents"])
    if (event["name"] == "layer 1 mlp forward") {
      EXPECT_EQ(event["pid"], 1);
      EXPECT_DOUBLE_EQ(event["ts"], 1.5e6);
      EXPECT_DOUBLE_EQ(event["dur"], 1.2e6);
    }
}

}  // namespace
}  // namespace transmamba
