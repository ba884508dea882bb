// Every way to share the work gives what one rank gives.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <ostream>

#include "core/transpoint.h"
#include "parallel/placement.h"
#include "tests/core/files.h"
#include "tests/parallel/worlds.h"

namespace transmamba {
namespace {

using testing::Globals;
using testing::Observed;
using testing::train_on_threads;

/// Four heads, six layers, TransPoints at awkward places, a vocabulary and widths that nothing divides.
Config awkward() {
  Config c;
  c.model.vocab_size = 37;
  c.model.hidden_size = 20;
  c.model.num_layers = 8;
  c.model.layer_pattern = "TT-T";
  c.model.num_heads = 8;
  c.model.qk_head_dim = 4;
  c.model.v_head_dim = 3;
  c.model.ffn_hidden_size = 24;
  c.model.transpoints = "0,5,13,48,1,47,24,31";
  c.model.init_std = 0.3;
  c.train.seq_len = 48;
  c.train.micro_batch = 1;
  c.train.global_batch = 8;
  c.train.steps = 10;
  c.train.dtype = "float64";
  c.train.seed = 5;
  c.optimizer.lr = 1e-3;
  c.optimizer.warmup_steps = 0;
  c.optimizer.clip_grad = 0.5;
  c.parallel.bucket_mb = 0.01;  // several buckets
  return c;
}

double relative_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    size += b[i] * b[i];
  }
  return size == 0 ? std::sqrt(difference) : std::sqrt(difference / size);
}

void expect_equal(const Observed& got, const Observed& expected, double tolerance) {
  for (const auto& [name, values] : expected.initial) EXPECT_EQ(got.initial.at(name), values) << name;
  for (std::size_t step = 0; step < expected.losses.size(); ++step) {
    EXPECT_NEAR(got.losses[step], expected.losses[step], tolerance) << "loss of step " << step;
    EXPECT_NEAR(got.norms[step] / expected.norms[step], 1, tolerance) << "gradient norm of step " << step;
    for (const auto& [name, values] : expected.gradients[step])
      EXPECT_LT(relative_difference(got.gradients[step].at(name), values), tolerance)
          << "gradient of " << name << " in step " << step;
  }
  EXPECT_THAT(got.stale, ::testing::Each(0)) << "values that a rank did not get from those that own them";
  for (const auto& [name, values] : expected.final)
    EXPECT_LT(relative_difference(got.final.at(name), values), tolerance) << name;
}

/// A way to share the work.
struct Share {
  std::int64_t tp = 1, cp = 1, pp = 1, dp = 1;
  std::string layout = "balanced";
  std::int64_t virtual_stages = 1;
};

std::string name_of(const Share& s) {
  return fmt::format("tp{}cp{}pp{}dp{}{}{}", s.tp, s.cp, s.pp, s.dp, s.cp > 1 ? s.layout : "",
                     s.virtual_stages > 1 ? fmt::format("x{}", s.virtual_stages) : "");
}

void PrintTo(const Share& share, std::ostream* out) { *out << name_of(share); }

Observed train(Config c, const Share& s, std::int64_t steps = 3) {
  c.parallel.tp = s.tp, c.parallel.cp = s.cp, c.parallel.pp = s.pp, c.parallel.dp = s.dp;
  c.parallel.cp_layout = s.layout, c.parallel.virtual_stages = s.virtual_stages;
  return train_on_threads(c, static_cast<int>(s.tp * s.cp * s.pp * s.dp), steps);
}

/// Every factorisation of `ranks`, each with every layout of the sequence and both schedules, where they
/// differ.
std::vector<Share> shares_of(std::int64_t ranks, std::int64_t layers = 8) {
  std::vector<Share> all;
  for (std::int64_t tp = 1; tp <= ranks; ++tp)
    for (std::int64_t cp = 1; tp * cp <= ranks; ++cp)
      for (std::int64_t pp = 1; tp * cp * pp <= ranks; ++pp) {
        if (ranks % (tp * cp * pp) != 0) continue;
        for (const char* layout : {"balanced", "contiguous", "zigzag", "striped"})
          for (const std::int64_t chunks : {1, 2}) {
            if (cp == 1 && layout != std::string("balanced")) continue;
            if (chunks > 1 && (pp == 1 || pp * chunks > layers)) continue;
            all.push_back({tp, cp, pp, ranks / (tp * cp * pp), layout, chunks});
          }
      }
  return all;
}

class Meshes : public ::testing::TestWithParam<Share> {};

TEST_P(Meshes, TrainLikeOneRank) {
  static const Observed serial = train(awkward(), {});
  expect_equal(train(awkward(), GetParam()), serial, 1e-10);
}

/// Where calls are dear, balanced deals a run a rank, and runs are shorter where attention is.
TEST(MeshesOfUnevenRuns, TrainLikeOneRank) {
  const testing::Folder folder;
  Machine machine = Machine::builtin_cpu();
  machine.attention.forward *= 1e6, machine.attention.backward *= 1e6;
  machine.qkv_conv.call = 0.1;
  machine.save(folder / "machine.json");
  Config c = awkward();
  c.model.transpoints = "16,13,9";
  c.parallel.machine = folder / "machine.json";
  const Observed serial = train(c, {}, 1);
  for (const Share& share : {Share{1, 2, 1, 1}, {2, 2, 1, 1}, {1, 2, 2, 1}, {1, 4, 1, 1}, {1, 4, 1, 2}}) {
    SCOPED_TRACE(name_of(share));
    Config shared = c;
    shared.parallel.cp = share.cp;
    const ContextLayout layout = plan_layout(shared, machine);
    EXPECT_LT(layout.tokens_of(0), layout.most_tokens()) << "of runs as long as each other nothing is learnt";
    expect_equal(train(c, share, 1), serial, 1e-10);
    Config other = c;
    other.train.micro_batch = 2, other.train.recompute = "full";
    if (share.dp == 1) expect_equal(train(other, share, 1), serial, 1e-10);
  }
}

const auto kName = [](const ::testing::TestParamInfo<Share>& info) { return name_of(info.param); };
INSTANTIATE_TEST_SUITE_P(OfTwo, Meshes, ::testing::ValuesIn(shares_of(2)), kName);
INSTANTIATE_TEST_SUITE_P(OfFour, Meshes, ::testing::ValuesIn(shares_of(4)), kName);
INSTANTIATE_TEST_SUITE_P(OfEight, Meshes, ::testing::ValuesIn(shares_of(8)), kName);

/// Six heads and six sequences: odd divisions.
Config sixfold() {
  Config c = awkward();
  c.model.num_heads = 6;
  c.model.layer_pattern = "T-TT";
  c.train.global_batch = 6;
  return c;
}

class OddMeshes : public ::testing::TestWithParam<Share> {};

TEST_P(OddMeshes, TrainLikeOneRank) {
  static const Observed serial = train(sixfold(), {});
  expect_equal(train(sixfold(), GetParam()), serial, 1e-10);
}

INSTANTIATE_TEST_SUITE_P(OfThree, OddMeshes, ::testing::ValuesIn(shares_of(3)), kName);
INSTANTIATE_TEST_SUITE_P(OfSix, OddMeshes, ::testing::ValuesIn(shares_of(6, 5)), kName);

/// What a model or a batch may be otherwise, on meshes that use every axis.
class Variants : public ::testing::TestWithParam<const char*> {};

TEST_P(Variants, TrainLikeOneRank) {
  Config c = awkward();
  const std::string variant = GetParam();
  if (variant == "tied_embeddings") c.model.tie_embeddings = true;
  if (variant == "gate_all") c.model.gate = "all";
  if (variant == "gate_none") c.model.gate = "none";
  if (variant == "no_converter") c.model.memory_converter = false;
  if (variant == "conv_width_1") c.model.conv_width = 1;
  if (variant == "conv_width_30") c.model.conv_width = 30;  // the halo spans several ranks
  if (variant == "all_ssm") c.model.transpoints = "0";
  if (variant == "all_attention") c.model.transpoints = "T";
  if (variant == "two_sequences_at_once") c.train.micro_batch = 2;
  if (variant == "tiny_vocabulary") c.model.vocab_size = 5;  // fewer words than tp ranks would like
  if (variant == "tokens_that_tp_does_not_divide") c.train.seq_len = 36;
  if (variant == "hard_clipping") c.optimizer.clip_grad = 1e-3;
  const Observed serial = train(c, {}, 2);
  for (const Share& share : std::vector<Share>{{2, 2, 2, 1, "balanced", 2},
                                               {2, 4, 1, 1, "striped", 1},
                                               {4, 1, 2, 1, "balanced", 1},
                                               {8, 1, 1, 1, "balanced", 1},
                                               {1, 4, 2, 1, "contiguous", 1},
                                               {1, 1, 2, 2, "balanced", 2},
                                               {1, 2, 2, 2, "zigzag", 1}}) {
    SCOPED_TRACE(name_of(share));
    expect_equal(train(c, share, 2), serial, 1e-10);
  }
}

INSTANTIATE_TEST_SUITE_P(Of, Variants,
                         ::testing::Values("tied_embeddings", "gate_all", "gate_none", "no_converter",
                                           "conv_width_1", "conv_width_30", "all_ssm", "all_attention",
                                           "two_sequences_at_once", "tiny_vocabulary",
                                           "tokens_that_tp_does_not_divide", "hard_clipping"),
                         [](const auto& info) { return std::string(info.param); });

/// Every TransPoint from before the first to past the last token: at a rank's boundary, inside a segment,
/// before its first or after its last token, in segments shorter than the convolution.
TEST(TransPoints, MayStandAnywhere) {
  Config c = awkward();
  c.model.num_layers = 1;
  c.model.layer_pattern = "T";
  c.train.seq_len = 16, c.train.global_batch = 1;
  for (std::int64_t p = 0; p <= 16; ++p) {
    c.model.transpoints = std::to_string(p);
    const Observed serial = train(c, {}, 1);
    for (const char* layout : {"contiguous", "zigzag", "striped"})
      for (const std::int64_t cp : {2, 4, 8}) {
        SCOPED_TRACE(fmt::format("P {}, {} over {} ranks", p, layout, cp));
        expect_equal(train(c, {1, cp, 1, 1, layout, 1}, 1), serial, 1e-10);
      }
  }
}

/// The sum of the losses of `batches` micro-batches, dealt out to the data replicas in turn.
double evaluate(const Share& share, std::int64_t batches) {
  double loss = 0;
  Config c = awkward();
  c.parallel.tp = share.tp, c.parallel.cp = share.cp, c.parallel.pp = share.pp;
  c.parallel.virtual_stages = share.virtual_stages;
  const int ranks = static_cast<int>(share.tp * share.cp * share.pp * share.dp);
  train_on_threads(c, ranks, 1, [&](Communicator& world, Engine& engine) {
    const Mesh& mesh = engine.mesh();
    Allocator memory;
    const Context context{{}, DType::f64, &memory};
    const std::int64_t mine = batches / mesh.dp() + (mesh.dp_index() < batches % mesh.dp());
    const double sum = engine.evaluate(mine, [&](std::int64_t i) {
      return testing::batch_at(context, c, 100, i * mesh.dp() + mesh.dp_index());
    });
    if (world.rank() == 0) loss = sum;
  });
  return loss;
}

TEST(Evaluation, IsThatOfOneRankAlsoWithFewerBatchesThanReplicas) {
  for (const std::int64_t batches : {1, 3, 5}) {
    const double expected = evaluate({}, batches);
    for (const Share& share : std::vector<Share>{{1, 1, 1, 8}, {2, 1, 2, 2, "balanced", 2}, {1, 2, 1, 4}})
      EXPECT_NEAR(evaluate(share, batches) / expected, 1, 1e-12)
          << name_of(share) << ", " << batches << " batches";
  }
}

TEST(Repeats, GiveTheSameBits) {
  const Share share{2, 2, 2, 1, "balanced", 2};
  const Observed first = train(awkward(), share), second = train(awkward(), share);
  EXPECT_EQ(first.losses, second.losses);
  EXPECT_EQ(first.final, second.final);
}

}  // namespace
}  // namespace transmamba
