#include "parallel/plan/search.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/cluster.h"
#include "parallel/degrees.h"

namespace transmamba {
namespace {

using ::testing::HasSubstr;

Config paper(std::vector<std::string> overrides = {}) {
  return parse_config(std::string(TRANSMAMBA_SOURCE_DIR) + "/configs/transmamba-400m.cfg", overrides);
}
Config resolved(Config config, int ranks) {
  config.parallel = resolve_parallel(config, ranks);
  return config;
}
double fullest(const std::vector<Memory>& pipeline) {
  double most = 0;
  for (const Memory& memory : pipeline) most = std::max(most, memory.total());
  return most;
}

TEST(PlanSearch, PlansQuicklyWhatAWholePlanSays) {
  const Machine machine = Machine::builtin_h200();
  for (const char* pp : {"1", "4", "8"})
    for (const char* virtual_stages : {"1", "2"})
      for (const char* batch : {"1024", "1008", "1002", "16"}) {
        const bool interleaves = std::string(virtual_stages) == "2";
        if (interleaves && (std::string(pp) == "1" || std::string(batch) == "1002")) continue;
        const Config c = resolved(paper({"--parallel.pp", pp, "--parallel.virtual_stages", virtual_stages,
                                         "--train.global_batch", batch, "--parallel.tp", "2"}),
                                  2 * std::stoi(pp));
        const int ranks = 2 * std::stoi(pp);
        const Plan plan = make_plan(c, ranks, machine);
        const MeshChoice quick = plan_quickly(c, machine, plan.layout);
        const double total = plan.step.total();
        EXPECT_NEAR(quick.step.total(), total, 1e-6 * total) << pp << " " << virtual_stages << " " << batch;
        EXPECT_NEAR(quick.step.pp, plan.step.pp, 1e-6 * total);
        EXPECT_NEAR(quick.step.compute, plan.step.compute, 1e-6 * total);
        EXPECT_DOUBLE_EQ(fullest(quick.memory), fullest(plan.memory));
      }
}

TEST(PlanSearch, FindsAMeshNoSlowerThanAnyAxisAlone) {
  const Cluster cluster =
      Cluster::load(std::string(TRANSMAMBA_SOURCE_DIR) + "/configs/clusters/h200-ndr.json");
  MeshSearch search(cluster.machine, {.memory_bytes = cluster.memory_bytes});
  const Config config = paper();
  for (const int ranks : {1, 2, 8, 16, 48}) {
    std::string problem;
    const auto best = search.fastest(config, ranks, problem);
    ASSERT_TRUE(best.has_value()) << problem;
    const ParallelConfig& p = best->parallel;
    EXPECT_EQ(p.tp * p.cp * p.pp * p.dp, ranks);
    EXPECT_LE(p.tp, 8) << "tp stays within a host";
    EXPECT_LE(fullest(best->memory), cluster.memory_bytes);
    for (const char* axis : {"tp", "cp", "pp", "dp"}) {
      Config alone = config;
      (*axis == 't'   ? alone.parallel.tp
       : *axis == 'c' ? alone.parallel.cp
       : *axis == 'p' ? alone.parallel.pp
                      : alone.parallel.dp) = ranks;
      try {
        EXPECT_LE(best->step.total(), make_plan(alone, ranks, cluster.machine).step.total() * (1 + 1e-9))
            << axis << " of " << ranks;
      } catch (const Error&) {  // that mesh is not possible
      }
    }
  }
}

TEST(PlanSearch, SharesAModelThatFitsNoSingleRank) {
  const Machine machine = Machine::builtin_h200();
  const double alone = fullest(make_plan(resolved(paper(), 1), 1, machine).memory);
  MeshSearch search(machine, {.memory_bytes = alone / 2});
  std::string problem;
  EXPECT_FALSE(search.fastest(paper(), 1, problem).has_value());
  EXPECT_THAT(problem, HasSubstr("tp 1 x cp 1 x pp 1 needs 20."));
  const auto best = search.fastest(paper(), 4, problem);
  ASSERT_TRUE(best.has_value()) << problem;
  EXPECT_LE(fullest(best->memory), alone / 2);
  EXPECT_GT(best->parallel.tp * best->parallel.cp * best->parallel.pp, 1) << "dp alone saves too little";
}

TEST(PlanSearch, SaysWhyNothingIsPossible) {
  const Machine machine = Machine::builtin_h200();
  MeshSearch search(machine, {});
  std::string problem;
  EXPECT_FALSE(search.fastest(paper(), 2053, problem).has_value()) << "a prime, and 1024 sequences";
  EXPECT_THAT(problem, HasSubstr("2053"));
}

}  // namespace
}  // namespace transmamba
