#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "launch/measure.h"
#include "parallel/comm/threads.h"

namespace transmamba {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Fit, FindsWhatMadeTheNumbers) {
  std::vector<std::vector<double>> rows;
  std::vector<double> seconds;
  for (const double flops : {1e6, 3e7, 1e9})
    for (const double bytes : {1e4, 5e5}) {
      rows.push_back({1, flops, bytes});
      seconds.push_back(3e-6 + flops * 2e-11 + bytes * 4e-10);
    }
  EXPECT_THAT(fit(rows, seconds),
              ElementsAre(DoubleNear(3e-6, 1e-10), DoubleNear(2e-11, 1e-15), DoubleNear(4e-10, 1e-14)));
}

TEST(Fit, NeverGoesBelowZero) {
  // The line through these has a negative cost of a call.
  EXPECT_THAT(fit({{1, 1}, {1, 10}}, {1, 20}), ElementsAre(0, ::testing::Gt(1.0)));
}

TEST(Fit, ManagesWithColumnsThatSayTheSame) {
  const std::vector<double> found = fit({{1, 2, 4}, {1, 4, 8}}, {2, 4});
  EXPECT_NEAR(2 * found[1] + 4 * found[2] + found[0], 2, 1e-9);
}

TEST(Fit, MeasuresAMachineThatPredictsEveryOp) {
  Allocator memory;
  Context context;
  context.memory = &memory;
  Config config = parse_config("", {"--model.hidden_size", "32", "--train.seq_len", "64"});
  std::vector<FitCheck> checks;
  const auto world = self_communicator();
  const Machine machine = measure_machine(context, config, *world, 1e-4, checks);
  EXPECT_EQ(checks.size(), 5U + 2 * 10 + 2);  // products; ops with a backward, and those without
  for (const FitCheck& check : checks) {
    EXPECT_GT(check.measured, 0) << check.what;
    EXPECT_GT(check.predicted, 0) << check.what;
  }
  EXPECT_GT(machine.attention.forward, 0);
  EXPECT_GT(machine.scan.backward, 0);
}

TEST(Fit, MeasuresTheLinksOfAHost) {
  run_as_threads(3, [](Communicator& world) {
    Allocator memory;
    Context context;
    context.memory = &memory;
    Machine machine = Machine::builtin_cpu();
    std::vector<FitCheck> checks;
    EXPECT_THAT(measure_links(context, world, "here", true, 1e-4, machine, checks),
                HasSubstr("3 ranks of one host"));
    EXPECT_EQ(machine.within_host.ranks, 3);
    for (const LinkCost& link : {machine.within_host.all_reduce, machine.within_host.send}) {
      EXPECT_GT(link.latency + link.byte, 0);
      EXPECT_LT(link.byte, 1e-6);
    }
    EXPECT_EQ(machine.between_hosts.send.byte, Machine::builtin_cpu().between_hosts.send.byte);
    EXPECT_EQ(checks.size(), 5U);
  });
}

TEST(Fit, MeasuresBetweenHostsToo) {
  run_as_threads(4, [](Communicator& world) {
    Allocator memory;
    Context context;
    context.memory = &memory;
    Machine machine = Machine::builtin_cpu();
    std::vector<FitCheck> checks;
    const std::string host = world.rank() < 2 ? "first" : "second";
    EXPECT_THAT(measure_links(context, world, host, true, 1e-4, machine, checks),
                HasSubstr("4 ranks of 2 hosts"));
    EXPECT_EQ(machine.within_host.ranks, 2);
    EXPECT_EQ(machine.between_hosts.ranks, 4);
    EXPECT_EQ(machine.ranks_per_host, 2);
  });
}

TEST(Fit, LeavesTheLinksOfOneRankAlone) {
  Allocator memory;
  Context context;
  context.memory = &memory;
  Machine machine = Machine::builtin_cpu();
  std::vector<FitCheck> checks;
  const auto world = self_communicator();
  EXPECT_THAT(measure_links(context, *world, "here", true, 1e-4, machine, checks), HasSubstr("built-in"));
  EXPECT_EQ(machine.within_host.send.byte, Machine::builtin_cpu().within_host.send.byte);
}

}  // namespace
}  // namespace transmamba
