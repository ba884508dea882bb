#include "parallel/plan/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <sstream>

#include "core/cost_model.h"
#include "tests/core/files.h"

namespace transmamba {
namespace {

using ::testing::AllOf;
using testing::error_of;
using ::testing::HasSubstr;

Config paper(std::vector<std::string> overrides = {}) {
  return parse_config(std::string(TRANSMAMBA_SOURCE_DIR) + "/configs/transmamba-400m.cfg", overrides);
}
Config small(std::vector<std::string> overrides = {}) {
  overrides.insert(overrides.end(), {"--model.vocab_size", "256", "--train.global_batch", "64"});
  return parse_config("", overrides);
}

TEST(Plan, BalancesV9OnEveryMachine) {
  for (const Machine& machine : {Machine::builtin_cpu(), Machine::builtin_h200()}) {
    for (const char* cp : {"2", "4", "8"}) {
      const Config config = paper({"--parallel.cp", cp});
      const Plan plan = make_plan(config, std::stoi(cp), machine);
      ASSERT_EQ(plan.layouts.size(), 4U);
      const LayoutChoice& balanced = plan.layouts[3];
      EXPECT_EQ(balanced.name, "balanced");
      // No layout is quicker, what its segments cost counted.
      for (const char* name : {"contiguous", "zigzag", "striped"})
        EXPECT_LE(plan.step.total(),
                  (1 + 1e-9) * make_plan(paper({"--parallel.cp", cp, "--parallel.cp_layout", name}),
                                         std::stoi(cp), machine)
                                   .step.total())
            << machine.name << ", cp " << cp << ", " << name;
      EXPECT_LE(balanced.waiting, plan.layouts[0].waiting);
      EXPECT_EQ(plan.layout, plan_layout(config, machine));
      const double total = std::accumulate(plan.rank_cost.begin(), plan.rank_cost.end(), 0.0);
      EXPECT_NEAR(*std::max_element(plan.rank_cost.begin(), plan.rank_cost.end()) * std::stoi(cp) / total,
                  balanced.imbalance, 1e-9);
    }
  }
}

TEST(Plan, DealsRunsOfDifferentLengthsWhereSegmentsCostMoreThanTheyBalance) {
  const auto plan_of = [](const char* layout) {
    return make_plan(
        paper({"--parallel.cp", "2", "--train.seq_len", "32768", "--parallel.cp_layout", layout}), 2,
        Machine::builtin_h200());
  };
  const Plan balanced = plan_of("balanced");
  ASSERT_EQ(balanced.layout.segments[0].size(), 1U);
  EXPECT_LT(balanced.layout.tokens_of(0), balanced.layout.tokens_of(1)) << "the first rank attends";
  for (const char* layout : {"contiguous", "zigzag", "striped"})
    EXPECT_LT(balanced.step.total(), plan_of(layout).step.total()) << layout;
}

/// The first rank attends in the second mixer, and of two runs of different lengths it has the shorter: what
/// it is ahead after the first mixer it loses in the second. On CPUs, and with two segments each, ranks wait
/// in both.
TEST(Plan, CountsNoWaitingForARankThatIsAhead) {
  Machine machine = Machine::builtin_cpu();
  for (OpCost* op : {&machine.scan, &machine.summary, &machine.qkv_conv, &machine.norm, &machine.gated_norm,
                     &machine.rotation, &machine.copy, &machine.embedding, &machine.cross_entropy})
    *op = {};
  machine.gemm_call = machine.gemm_byte = 0, machine.gemm_flop = 1e-12;
  const auto waiting = [&](const char* device, const ContextLayout& layout) {
    const Config config =
        small({"--parallel.cp", "2", "--train.seq_len", "1024", "--model.num_layers", "2",
               "--model.layer_pattern", "T", "--train.micro_batch", "1", "--train.device", device});
    return waiting_imbalance({config, machine, layout}, std::vector<std::int64_t>{0, 256});
  };
  const ContextLayout even{{{{0, 512}}, {{512, 1024}}}}, uneven{{{{0, 448}}, {{448, 1024}}}},
      mixed{{{{0, 448}, {960, 1024}}, {{448, 960}}}};
  EXPECT_LT(waiting("cuda", uneven), waiting("cuda", even));
  EXPECT_LT(waiting("cuda", uneven), waiting("cpu", uneven));
  EXPECT_LT(waiting("cuda", uneven), waiting("cuda", mixed));
  EXPECT_NEAR(waiting("cuda", mixed), waiting("cpu", mixed), 1e-9);
}

/// The last rank has longer to compute forwards, the first backwards: where the last leaves its head's
/// weights to the end, the first waits for neither.
TEST(Plan, CountsAHeadWhoseWeightsComeLast) {
  Machine machine = Machine::builtin_cpu();
  for (OpCost* op : {&machine.scan, &machine.summary, &machine.qkv_conv, &machine.norm, &machine.gated_norm,
                     &machine.rotation, &machine.copy, &machine.embedding, &machine.cross_entropy})
    *op = {};
  machine.attention = {0, 1e-9, 1e-8, 0};
  machine.gemm_call = machine.gemm_byte = 0, machine.gemm_flop = 1e-12;
  const auto waiting = [&](const char* tied) {
    const Config config = small({"--parallel.cp", "2", "--train.seq_len", "1024", "--model.num_layers", "2",
                                 "--model.layer_pattern", "T", "--train.micro_batch", "1", "--train.device",
                                 "cuda", "--model.tie_embeddings", tied});
    const ContextLayout layout{{{{0, 448}}, {{448, 1024}}}};
    return waiting_imbalance({config, machine, layout}, std::vector<std::int64_t>{256, 0});
  };
  EXPECT_LT(waiting("true"), waiting("false"));
}

TEST(LateHead, IsOfTheLastRankOnAGpuWhereItWaitsForNobodyAndNobodyForIt) {
  ModelConfig tied, untied;
  tied.tie_embeddings = true, untied.tie_embeddings = false;
  const ContextLayout runs{{{{0, 5}}, {{5, 12}}}}, other_way{{{{5, 12}}, {{0, 5}}}},
      zigzag{{{{0, 3}, {9, 12}}, {{3, 9}}}}, one{{{{0, 12}}}};
  const std::vector<std::int64_t> short_prefix{0, 5}, long_prefix{0, 6};
  const auto rank = [&](const ModelConfig& model, const ContextLayout& layout, const auto& transpoints,
                        std::int64_t tp = 1, std::int64_t pp = 1, bool on_gpu = true) {
    return late_head_rank(model, layout, transpoints, tp, pp, on_gpu);
  };
  EXPECT_EQ(rank(tied, runs, short_prefix), 1U);
  EXPECT_EQ(rank(tied, other_way, short_prefix), 0U);
  EXPECT_FALSE(rank(tied, runs, long_prefix)) << "it needs keys of the first";
  EXPECT_FALSE(rank(tied, zigzag, short_prefix)) << "each waits for the other";
  EXPECT_FALSE(rank(tied, one, short_prefix));
  EXPECT_FALSE(rank(tied, {}, short_prefix)) << "sequences of any length";
  EXPECT_FALSE(rank(untied, runs, short_prefix)) << "a bucket of its own";
  EXPECT_FALSE(rank(tied, runs, short_prefix, 2));
  EXPECT_FALSE(rank(tied, runs, short_prefix, 1, 2)) << "the stage before waits";
  EXPECT_FALSE(rank(tied, runs, short_prefix, 1, 1, false));
}

TEST(Plan, SaysWhichLayoutsTheLengthDoesNotAllow) {
  const Plan plan =
      make_plan(small({"--parallel.cp", "4", "--train.seq_len", "516"}), 4, Machine::builtin_cpu());
  EXPECT_THAT(plan.layouts[1].problem, HasSubstr("2 x 4"));
  EXPECT_THAT(print(plan), HasSubstr("zigzag      not possible"));
}

TEST(Plan, GivesADearMixerFewNeighbours) {
  const Config config = paper({"--parallel.pp", "4", "--parallel.dp", "1", "--model.transpoints",
                               "0,0,0,0,0,T", "--model.num_layers", "12"});
  const std::vector<Stage> stages =
      plan_stages(config, Machine::builtin_cpu(), plan_layout(config, Machine::builtin_cpu()));
  ASSERT_EQ(stages.size(), 4U);
  EXPECT_EQ(stages.front().begin, 0);
  EXPECT_EQ(stages.back().end, 12);
  std::int64_t with_attention = 0, most = 0;
  for (const Stage& stage : stages) {
    most = std::max(most, stage.end - stage.begin);
    if (stage.begin <= 10 && 10 < stage.end) with_attention = stage.end - stage.begin;
  }
  EXPECT_LT(with_attention, most);
  EXPECT_EQ(make_plan(config, 4, Machine::builtin_cpu()).stages, stages);
}

TEST(Plan, StepIsTheSumOfItsParts) {
  const Plan plan = make_plan(paper({"--parallel.tp", "2", "--parallel.cp", "2", "--parallel.pp", "4",
                                     "--parallel.virtual_stages", "2"}),
                              32, Machine::builtin_h200());
  EXPECT_EQ(plan.config.parallel.dp, 2);
  EXPECT_EQ(plan.schedule.micro_batches, 256);
  const StepTime& t = plan.step;
  EXPECT_NEAR(t.compute + t.tp + t.cp + t.pp, plan.timeline.seconds, 1e-9);
  EXPECT_NEAR(plan.tokens_per_second, 1024 * 8192 / t.total(), 1e-3);
  for (const double part : {t.compute, t.tp, t.cp, t.pp, t.optimizer}) EXPECT_GT(part, 0);
}

TEST(Plan, OneRankSaysNothingToOthers) {
  const StepTime t = make_plan(small(), 1, Machine::builtin_cpu()).step;
  EXPECT_EQ(t.tp + t.cp + t.dp, 0);
  EXPECT_NEAR(t.pp, 0, 1e-9);
}

TEST(Plan, WhatIsRecomputedTakesTheTimeOfItsForwardPass) {
  for (const Machine& machine : {Machine::builtin_cpu(), Machine::builtin_h200()}) {
    const auto plan = [&](const char* recompute) {
      return make_plan(paper({"--train.recompute", recompute}), 1, machine);
    };
    const Plan none = plan("none"), selective = plan("selective"), full = plan("full");
    // All layers but their last products, of which each has one.
    const ModelConfig& m = none.config.model;
    const auto tokens = static_cast<double>(none.config.train.micro_batch * none.config.train.seq_len);
    double forward = 0;
    for (const LayerTime& layer : layer_times({none.config, machine, none.layout}, none.transpoints))
      forward += layer.compute.forward;
    const auto last = [&](std::int64_t inner, std::int64_t count) {
      return machine.gemm(tokens, static_cast<double>(m.hidden_size), static_cast<double>(inner)) *
             static_cast<double>(count);
    };
    forward -= last(m.num_heads * m.v_head_dim, m.num_mixers());
    forward -= last(m.ffn_hidden_size, m.num_layers - m.num_mixers());
    // And but the sum of residuals.
    forward -= static_cast<double>(m.num_layers) *
               (machine.copy.call + machine.copy.forward * tokens * static_cast<double>(m.hidden_size));
    forward *= static_cast<double>(none.schedule.micro_batches);
    const double more = full.step.total() - none.step.total();
    EXPECT_NEAR(more / forward, 1, 0.03) << machine.name;
    EXPECT_GT(more / none.step.total(), 0.15) << machine.name;
    EXPECT_LT(more / none.step.total(), 0.35) << machine.name;
    EXPECT_GT(selective.step.total(), 1.002 * none.step.total()) << machine.name;
    EXPECT_LT(selective.step.total() - none.step.total(), 0.4 * more) << machine.name;
  }
}

TEST(Plan, WhatIsRecomputedInFullIsSaidAgain) {
  const auto step = [](const char* recompute) {
    return make_plan(paper({"--parallel.tp", "2", "--parallel.cp", "2", "--train.recompute", recompute,
                            "--train.device", "cpu", "--train.dtype", "float32"}),
                     4, Machine::builtin_cpu())
        .step;
  };
  const StepTime none = step("none"), selective = step("selective"), full = step("full");
  EXPECT_EQ(selective.tp, none.tp);
  EXPECT_EQ(selective.cp, none.cp);
  EXPECT_GT(full.tp, 1.1 * none.tp);
  EXPECT_GT(full.cp, 1.2 * none.cp);
}

TEST(Plan, MoreOfEverythingTakesLessTime) {
  const auto seconds = [](std::vector<std::string> overrides, int ranks) {
    return make_plan(paper(std::move(overrides)), ranks, Machine::builtin_h200()).step.total();
  };
  const double one = seconds({}, 1);
  EXPECT_NEAR(one / seconds({}, 8), 8, 0.3) << "data parallel";
  // Communication counts as exposed, and in float32 beside the built-in H200's bfloat16 products.
  EXPECT_GT(one / seconds({"--parallel.cp", "8"}, 8), 3);
  EXPECT_GT(one / seconds({"--parallel.tp", "8"}, 8), 1.5);
  EXPECT_GT(one / seconds({"--parallel.pp", "8"}, 8), 5);
  EXPECT_LT(seconds({"--model.transpoints", "mamba"}, 1), seconds({"--model.transpoints", "transformer"}, 1));
}

TEST(Plan, DealsLayersForAShorterStepThanEvenStagesGive) {
  const Machine machine = Machine::builtin_h200();
  for (const char* file : {"transmamba-400m", "transmamba-1.5b"})
    for (const char* pp : {"2", "4"})
      for (const char* virtual_stages : {"1", "2", "3", "6"})
        for (const char* batch : {"32", "1024"}) {
          const Config config =
              parse_config(fmt::format("{}/configs/{}.cfg", TRANSMAMBA_SOURCE_DIR, file),
                           {"--parallel.pp", pp, "--parallel.virtual_stages", virtual_stages, "--parallel.dp",
                            "1", "--train.global_batch", batch});
          const ContextLayout layout = plan_layout(config, machine);
          const Plan plan = make_plan(config, std::stoi(pp), machine, layout);
          std::vector<double> cost;
          for (const LayerTime& time : layer_times({config, machine, layout}, plan.transpoints))
            cost.push_back(time.total().total());
          const RankShare share{config, machine, layout};
          const std::vector<Stage> even =
              partition(cost, embedding_time(share).total().total(), head_time(share).total().total(),
                        std::stoi(pp) * std::stoi(virtual_stages));
          const double seconds = make_plan(config, machine, layout, even).timeline.seconds;
          const std::string what = fmt::format("{} pp {} x {}, {}", file, pp, virtual_stages, batch);
          EXPECT_LE(plan.timeline.seconds, seconds * (1 + 1e-12)) << what;
          if (*virtual_stages == '2' && *batch == '3') {
            EXPECT_LT(plan.timeline.seconds, 0.998 * seconds) << what;
          }
        }
}

TEST(Plan, StagesHoldAllParameters) {
  const Config config =
      paper({"--parallel.pp", "4", "--parallel.dp", "1", "--model.tie_embeddings", "false"});
  double sum = 0;
  for (const Stage& stage :
       plan_stages(config, Machine::builtin_h200(), plan_layout(config, Machine::builtin_h200())))
    sum += stage_parameters(config, stage);
  EXPECT_EQ(static_cast<std::int64_t>(sum), parameter_count(config.model));
  EXPECT_EQ(static_cast<std::int64_t>(stage_parameters(paper(), Stage{0, 24, true, true})),
            parameter_count(paper().model))
      << "tied, on one stage: once";
}

TEST(Plan, MemoryFallsWithEveryAxis) {
  const auto worst = [](std::vector<std::string> overrides, int ranks) {
    Memory most;
    for (const Memory& m : make_plan(paper(std::move(overrides)), ranks, Machine::builtin_h200()).memory)
      if (m.total() > most.total()) most = m;
    return most;
  };
  const Memory one = worst({}, 1);
  // Matrices are bfloat16, with a float32 copy in the optimizer; all else is float32.
  const ModelConfig m = paper().model;
  const ParameterCounts counts = parameter_counts(m);
  const auto count = static_cast<double>(counts.total());
  const auto no_matrices = static_cast<double>(
      counts.norms + m.num_mixers() * m.num_heads *
                         ((m.conv_width + 1) * (2 * m.qk_head_dim + m.v_head_dim) + m.v_head_dim + 3));
  EXPECT_EQ(one.parameters, 2 * (count - no_matrices) + 4 * no_matrices);
  EXPECT_EQ(one.gradients, 4 * count);
  EXPECT_EQ(one.optimizer, 8 * count + 4 * (count - no_matrices));
  EXPECT_NEAR(worst({}, 4).optimizer, one.optimizer / 4, 1);
  EXPECT_LT(worst({"--parallel.tp", "4"}, 4).activations, 0.3 * one.activations);
  EXPECT_LT(worst({"--parallel.cp", "4"}, 4).activations, 0.3 * one.activations);
  EXPECT_LT(worst({"--parallel.pp", "4"}, 4).parameters, 0.5 * one.parameters);
  // The first of 4 stages holds 4 micro-batches of a quarter of the layers.
  EXPECT_GT(worst({"--parallel.pp", "4"}, 4).activations, 0.6 * one.activations);
}

TEST(Plan, NeedsAVocabulary) {
  EXPECT_THAT(error_of([] { make_plan(parse_config("", {}), 1, Machine::builtin_cpu()); }),
              AllOf(HasSubstr("[plan]"), HasSubstr("model.vocab_size")));
}

TEST(Plan, PrintsWhatAPersonAsks) {
  const std::string text =
      print(make_plan(small({"--parallel.pp", "2", "--parallel.cp", "2"}), 8, Machine::builtin_cpu()));
  for (const char* part :
       {"mesh      8 ranks = tp 1 x cp 2 x dp 2 x pp 2", "context layout: balanced", "[embedding]", "[head]",
        "contiguous", "memory", "tokens/s", "pipeline:", "rank 1 |"})
    EXPECT_THAT(text, HasSubstr(part));
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 160U) << line;
}

}  // namespace
}  // namespace transmamba
