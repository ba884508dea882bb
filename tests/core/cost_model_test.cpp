#include "core/cost_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/transpoint.h"
#include "kernels/check.h"

namespace transmamba {
namespace {

/// d 4, h 2, n 2, p 3, f 5, V 7, w 4: small enough for pen and paper.
ModelConfig small(const std::string& transpoints) {
  ModelConfig model;
  model.vocab_size = 7;
  model.hidden_size = 4;
  model.num_layers = 2;
  model.num_heads = 2;
  model.qk_head_dim = 2;
  model.v_head_dim = 3;
  model.ffn_hidden_size = 5;
  model.transpoints = transpoints;
  return model;
}

ModelConfig paper(std::int64_t num_layers, const std::string& transpoints) {
  ModelConfig model;
  model.vocab_size = 32768;
  model.hidden_size = 1536;
  model.num_layers = num_layers;
  model.num_heads = 16;
  model.qk_head_dim = model.v_head_dim = 96;
  model.ffn_hidden_size = 4096;
  model.tie_embeddings = true;
  model.transpoints = transpoints;
  return model;
}

TEST(CostModel, CountsASmallForwardPassAsByHand) {
  const ForwardFlops flops = forward_flops(small("4"), 10);
  // q, k (4 wide), v, z (6), dt (2) from 4: 22 columns; out is 6 x 4. 10 tokens.
  EXPECT_EQ(flops.projections, 2 * 10 * (4 * 22 + 6 * 4));
  EXPECT_EQ(flops.mlps, 10 * 3 * (2 * 4 * 5));
  EXPECT_EQ(flops.head, 10 * 2 * 4 * 7);
  EXPECT_EQ(flops.attention, 2 * (2 * 4 * 4 * 2 + 2 * 4 * 4 * 3) / 2);  // 2 heads, a 4 x 4 square, halved
  EXPECT_EQ(flops.ssm, 6 * 2 * (2 * 2 * 3 + 2 * 2 * 3));  // 6 tokens, 2 heads, update and readout
  EXPECT_EQ(flops.converter, 4 * 2 * (2 * 2 * 3));
  EXPECT_EQ(flops.total(), 2240 + 1200 + 560 + 160 + 288 + 96);
}

TEST(CostModel, ChargesTheConverterOnlyWhereAnSsmReadsIt) {
  EXPECT_EQ(forward_flops(small("T"), 10).converter, 0);
  EXPECT_EQ(forward_flops(small("T"), 10).ssm, 0);
  EXPECT_EQ(forward_flops(small("0"), 10).converter, 0);
  EXPECT_EQ(forward_flops(small("0"), 10).attention, 0);
  ModelConfig ablation = small("4");
  ablation.memory_converter = false;
  EXPECT_EQ(forward_flops(ablation, 10).converter, 0);
}

TEST(CostModel, BackwardCostsTwiceTheForward) { EXPECT_EQ(training_flops(small("4"), 10, 5), 3 * 5 * 4544); }

TEST(CostModel, GivesEachMixerItsOwnTransPoint) {
  ModelConfig model = small("0,T");
  model.num_layers = 4;
  const ForwardFlops flops = forward_flops(model, 10);
  EXPECT_EQ(flops.attention, 2 * (2 + 3) * 10 * 10);
  EXPECT_EQ(flops.ssm, 4 * 2 * 2 * 3 * 10);
}

TEST(CostModel, LayersAndHeadAddUpToTheModel) {
  const ModelConfig model = paper(24, "V9");
  const auto transpoints = resolve_transpoints(model, 8192);
  double sum = forward_flops(model, 8192).head;
  for (int mixer = 0; mixer < 12; ++mixer)
    sum +=
        layer_flops(model, 'T', 8192, transpoints[mixer]).total() + layer_flops(model, '-', 8192, 0).total();
  EXPECT_DOUBLE_EQ(sum, forward_flops(model, 8192).total());
}

TEST(CostModel, OrdersThePapersSchedules) {
  const auto cost = [](const char* transpoints) { return training_flops(paper(64, transpoints), 32768, 1); };
  EXPECT_LT(cost("mamba"), cost("V9"));
  EXPECT_LT(cost("V9"), cost("hybrid"));
  EXPECT_LT(cost("hybrid"), cost("transformer"));
}

TEST(CostModel, DoesNotOverflowOnAMillionTokens) {
  const double flops = layer_flops(paper(24, "T"), 'T', 1 << 20, 1 << 20).attention;
  EXPECT_EQ(flops, 16.0 * 192 * 0x1p40);
}

TEST(CostModel, CountsParametersAsByHand) {
  ModelConfig model = small("4");
  const ParameterCounts counts = parameter_counts(model);
  EXPECT_EQ(counts.embedding, 28);
  // Projections 22 columns of 4 and 6 x 4; conv 4 taps and a bias on 4 + 4 + 6 channels; dt_bias, A_log and D
  // of 2; out_norm of 6.
  EXPECT_EQ(counts.mixers, 88 + 24 + 14 * 5 + 3 * 2 + 6);
  EXPECT_EQ(counts.mlps, 3 * 4 * 5);
  EXPECT_EQ(counts.norms, 3 * 4);
  EXPECT_EQ(counts.head, 28);
  EXPECT_EQ(parameter_count(model), 28 + 194 + 60 + 12 + 28);
  model.tie_embeddings = true;
  EXPECT_EQ(parameter_count(model), 28 + 194 + 60 + 12);
}

TEST(CostModel, FindsThePapersModelsAtTheirSizes) {
  EXPECT_NEAR(static_cast<double>(parameter_count(paper(24, "V9"))), 419e6, 0.5e6);
  EXPECT_NEAR(static_cast<double>(parameter_count(paper(64, "V9"))), 1.03e9, 5e6);
}

TEST(CostModel, AsksForResolvedSizes) {
  ModelConfig model = small("4");
  model.vocab_size = 0;
  EXPECT_THROW(parameter_count(model), Error);
  model = small("4");
  model.qk_head_dim = 0;
  EXPECT_THROW(forward_flops(model, 10), Error);
}

}  // namespace
}  // namespace transmamba
