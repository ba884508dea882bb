#include "core/machine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <tuple>

#include "core/step_cost.h"
#include "core/transpoint.h"
#include "tests/core/files.h"

namespace transmamba {
namespace {

using ::testing::AllOf;
using testing::error_of;
using testing::Folder;
using ::testing::HasSubstr;
using testing::slurp;
using testing::spill;

ModelConfig paper(const std::string& transpoints) {
  ModelConfig model;
  model.vocab_size = 32768;
  model.hidden_size = 1536;
  model.num_layers = 24;
  model.num_heads = 16;
  model.qk_head_dim = model.v_head_dim = 96;
  model.ffn_hidden_size = 4096;
  model.transpoints = transpoints;
  return model;
}

TEST(Machine, ComesBackFromItsFile) {
  const Folder folder;
  const Machine machine = Machine::builtin_h200();
  machine.save(folder / "m.json");
  const Machine loaded = Machine::load(folder / "m.json");
  loaded.save(folder / "again.json");
  EXPECT_EQ(slurp(folder / "m.json"), slurp(folder / "again.json"));
  EXPECT_EQ(loaded.attention.backward, machine.attention.backward);
  EXPECT_EQ(loaded.between_hosts.send.byte, machine.between_hosts.send.byte);
}

TEST(Machine, NamesTheFileAndTheKeyThatAreWrong) {
  const Folder folder;
  const auto path = folder / "m.json";
  const auto complaint = [&](const std::string& from, const std::string& to) {
    Machine::builtin_cpu().save(path);
    std::string text = slurp(path);
    const std::size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    spill(path, text.replace(at, from.size(), to));
    return error_of([&] { Machine::load(path); });
  };
  EXPECT_THAT(complaint("\"scan\"", "\"scam\""), AllOf(HasSubstr("m.json"), HasSubstr("scan is missing")));
  EXPECT_THAT(complaint("\"latency\": ", "\"latency\": -"), HasSubstr("within_host.all_reduce.latency"));
  EXPECT_THAT(complaint("\"flop\": ", "\"flop\": [],\"x\": "),
              AllOf(HasSubstr("gemm.flop"), HasSubstr("[]")));
  EXPECT_THAT(complaint("\"version\": 3", "\"version\": 9"), HasSubstr("version: expected 3, got 9"));
  EXPECT_THAT(complaint("float32", "float33"), HasSubstr("dtype: expected one of"));
  EXPECT_THAT(complaint("{", "{{"), HasSubstr("expected a JSON object"));
  EXPECT_THAT(error_of([&] { Machine::load(folder / "none.json"); }),
              AllOf(HasSubstr("none.json"), HasSubstr("bench")));
}

TEST(Machine, IsTheFilesOrTheDevices) {
  const Folder folder;
  Machine machine = Machine::builtin_cpu();
  machine.name = "mine";
  machine.save(folder / "m.json");
  EXPECT_EQ(Machine::of(folder / "m.json", "cuda").name, "mine");
  EXPECT_EQ(Machine::of({}, "cuda").name, "built-in H200");
  EXPECT_EQ(Machine::of({}, "cpu").name, "built-in CPU");
}

TEST(Machine, CollectivesCostWhatARingMoves) {
  Links links;
  links.all_reduce = links.all_gather = {1, 0.5};
  EXPECT_DOUBLE_EQ(all_reduce_seconds(links, 4, 8), 6 + 0.5 * 12);
  EXPECT_DOUBLE_EQ(all_gather_seconds(links, 4, 8), 3 + 0.5 * 6);
  EXPECT_EQ(all_reduce_seconds(links, 1, 8), 0);
}

TEST(Machine, WhatWasMeasuredOfALinkCounts) {
  Links links;
  links.all_reduce = {1e-6, 0.5e-9, 2, {{1000, 10e-6}, {5000, 12e-6}, {9000, 20e-6}}};
  const auto of = [&](double bytes, double steps = 2) { return links.all_reduce.seconds(bytes, steps); };
  EXPECT_DOUBLE_EQ(of(1000), 10e-6);
  EXPECT_DOUBLE_EQ(of(5000), 12e-6);
  EXPECT_DOUBLE_EQ(of(9000), 20e-6);
  EXPECT_DOUBLE_EQ(of(2000), 10.5e-6);   // a quarter of the way to the next
  EXPECT_DOUBLE_EQ(of(0), 2e-6);         // latency alone
  EXPECT_DOUBLE_EQ(of(500), 6e-6);       // half-way from there
  EXPECT_DOUBLE_EQ(of(90000), 200e-6);   // ten times the largest
  EXPECT_DOUBLE_EQ(of(5000, 6), 16e-6);  // 4 ranks: 4 steps more
  // Fewer steps than were measured, and most of the time was latency.
  links.all_reduce.steps = 14, links.all_reduce.latency = 0.9e-6;
  EXPECT_DOUBLE_EQ(of(1000, 2), 10e-6 * 2 / 14);
  EXPECT_DOUBLE_EQ(all_reduce_seconds(links, 8, 5000 * 8 / 14.0), 12e-6);
}

TEST(Machine, KeepsCurvesInItsFileAndWantsThemInOrder) {
  const Folder folder;
  const auto path = folder / "m.json";
  Machine machine = Machine::builtin_cpu();
  machine.within_host.send = {1e-6, 1e-10, 1, {{1024, 2e-6}, {4096, 3.5e-6}}};
  machine.save(path);
  const LinkCost send = Machine::load(path).within_host.send;
  ASSERT_EQ(send.curve.size(), 2U);
  EXPECT_EQ(send.curve[1].bytes, 4096);
  EXPECT_EQ(send.curve[1].seconds, 3.5e-6);
  EXPECT_EQ(send.steps, 1);
  EXPECT_TRUE(Machine::load(path).within_host.exchange.curve.empty());
  machine.within_host.send.curve[1].bytes = 1024;
  machine.save(path);
  EXPECT_THAT(error_of([&] { Machine::load(path); }),
              AllOf(HasSubstr("within_host.send.curve"), HasSubstr("rising")));
}

TEST(StepCost, H200TakesWhatItsKernelsTookForTheirShapes) {
  const Machine machine = Machine::builtin_h200();  // two sequences of 8192 tokens; here each is a call
  const Seconds all = mixing_seconds(paper("T"), machine, 8192, 8192, 0, 8192, 1, Sharing::none) * 2;
  EXPECT_NEAR(all.forward, 0.957e-3 + 2 * machine.attention.call, 0.1e-3) << "RoPE, too";
  EXPECT_NEAR(all.backward, 2.63e-3 + 2 * machine.attention.call_backward, 0.1e-3);
  const Seconds none = mixing_seconds(paper("0"), machine, 0, 8192, 0, 8192, 1, Sharing::none) * 2;
  EXPECT_NEAR(none.forward, 0.102e-3 + machine.scan.call, 1e-6);
  EXPECT_NEAR(none.backward, 0.36e-3 + machine.scan.call_backward, 1e-6);
}

TEST(Machine, ProductsOfManyWavesTakeWholeOnes) {
  Machine machine;
  machine.gemm_flop = 1;
  EXPECT_EQ(machine.gemm(10, 51, 3), 2 * 510 * 3) << "as on a CPU";
  machine.gemm_wave = 100;
  EXPECT_EQ(machine.gemm(10, 51, 3), 2 * 600 * 3);
  EXPECT_EQ(machine.gemm(10, 60, 3), 2 * 600 * 3);
  EXPECT_EQ(machine.gemm(10, 39, 3), 2 * 390 * 3) << "few waves";
}

TEST(StepCost, AttentionCostsMoreFurtherBack) {
  const Machine machine = Machine::builtin_cpu();
  const auto cost = [&](std::int64_t begin, std::int64_t end) {
    return mixing_seconds(paper("4096"), machine, 4096, 8192, begin, end, 1, Sharing::none).forward;
  };
  EXPECT_GT(cost(2048, 4096), 2.5 * cost(0, 2048) - 1e-4);
  EXPECT_NEAR(cost(4096, 6144), cost(6144, 8192), 1e-9) << "the SSM does not look back";
  EXPECT_NEAR(cost(0, 1000) + cost(1000, 5000) + cost(5000, 8192), cost(0, 8192), 1e-4) << "but for calls";
}

TEST(StepCost, SegmentsAreSummarisedForOtherRanksUnlessTheirRanksOnlyOneIsAtAnEnd) {
  Machine machine;
  machine.summary = {0, 1, 10};
  const auto cost = [&](std::int64_t begin, std::int64_t end, Sharing sharing) {
    return mixing_seconds(paper("0"), machine, 0, 8192, begin, end, 1, sharing);
  };
  const double once = cost(2048, 4096, Sharing::segments).forward;
  EXPECT_GT(once, 0);
  EXPECT_EQ(cost(2048, 4096, Sharing::segments).backward, once) << "its entry gradient";
  EXPECT_EQ(cost(2048, 4096, Sharing::one_segment).total(), 2 * once);
  EXPECT_EQ(cost(0, 2048, Sharing::segments).forward, once);
  EXPECT_EQ(cost(0, 2048, Sharing::segments).backward, 0);
  EXPECT_EQ(cost(0, 2048, Sharing::one_segment).total(), 0);
  EXPECT_EQ(cost(6144, 8192, Sharing::segments).forward, 0);
  EXPECT_EQ(cost(6144, 8192, Sharing::segments).backward, once);
  EXPECT_EQ(cost(6144, 8192, Sharing::one_segment).total(), 0);
  EXPECT_EQ(cost(2048, 4096, Sharing::none).total(), 0);
}

TEST(StepCost, TensorParallelRanksShareTheWork) {
  const Machine machine = Machine::builtin_cpu();
  const ModelConfig model = paper("V9");
  EXPECT_NEAR(mlp_seconds(model, machine, 8192, 4).total(), mlp_seconds(model, machine, 8192, 1).total() / 4,
              0.1 * mlp_seconds(model, machine, 8192, 1).total() / 4);
  EXPECT_NEAR(head_seconds(model, machine, 8192, 4).total(),
              head_seconds(model, machine, 8192, 1).total() / 4,
              0.1 * head_seconds(model, machine, 8192, 1).total() / 4);
}

/// A layer of each kind and the head, where nothing but one op takes time.
TEST(StepCost, RecomputedOpsRunAgain) {
  const ModelConfig model = paper("4096");
  for (const auto& [op, selective, full] : {std::tuple{&Machine::norm, true, true},
                                            {&Machine::qkv_conv, true, true},
                                            {&Machine::rotation, true, true},
                                            {&Machine::gated_norm, true, true},
                                            {&Machine::swiglu, true, true},
                                            {&Machine::attention, false, true},
                                            {&Machine::scan, false, true},
                                            {&Machine::summary, false, true},
                                            {&Machine::copy, false, false},
                                            {&Machine::cross_entropy, false, false}}) {
    Machine machine;
    machine.*op = {0, 1, 10};
    const auto seconds = [&, &machine = machine](Recompute again) {
      Seconds sum = mixing_seconds(model, machine, 4096, 8192, 0, 8192, 1, Sharing::none, again);
      sum += mixer_rest_seconds(model, machine, 8192, 1, again);
      sum += mlp_seconds(model, machine, 8192, 1, again);
      sum += head_seconds(model, machine, 8192, 1, again);
      return sum;
    };
    const Seconds none = seconds(Recompute::none);
    EXPECT_GT(none.forward, 0);
    for (const auto& [again, runs] : {std::pair{Recompute::selective, selective}, {Recompute::full, full}}) {
      EXPECT_EQ(seconds(again).forward, none.forward);
      EXPECT_EQ(seconds(again).backward, none.backward + (runs ? none.forward : 0));
    }
  }
}

TEST(StepCost, TokensAddUpToTheLayers) {
  for (const bool shared : {false, true}) {
    Machine machine = Machine::builtin_h200();
    for (OpCost* op : {&machine.attention, &machine.scan, &machine.summary})
      op->call = op->call_backward = 0;  // which are a segment's
    const ModelConfig model = paper("V9");
    const auto transpoints = resolve_transpoints(model, 8192);
    const std::vector<double> cost = token_costs(model, transpoints, machine, 8192, shared);
    Seconds layers = embedding_seconds(model, machine, 8192, 1);
    layers += head_seconds(model, machine, 8192, 1);
    for (const std::int64_t transpoint : transpoints) {
      layers += mixing_seconds(model, machine, transpoint, 8192, 0, 8192, 1,
                               shared ? Sharing::segments : Sharing::none);
      layers += mixer_rest_seconds(model, machine, 8192, 1);
      layers += mlp_seconds(model, machine, 8192, 1);
    }
    EXPECT_NEAR(std::accumulate(cost.begin(), cost.end(), 0.0), layers.total(), 0.01 * layers.total());
  }
}

TEST(StepCost, TokensCostByTheMixersThatAttendThere) {
  const Machine machine = Machine::builtin_cpu();
  const auto cost = token_costs(paper("0"), resolve_transpoints(paper("0"), 64), machine, 64, false);
  EXPECT_EQ(cost.front(), cost.back());
  const auto attending = token_costs(paper("T"), resolve_transpoints(paper("T"), 64), machine, 64, false);
  const double pair = 12 * 16 * 192 * (machine.attention.forward + machine.attention.backward);
  EXPECT_NEAR(attending[63] - attending[0], 63 * pair, 1e-6 * attending[63]);
}

}  // namespace
}  // namespace transmamba
