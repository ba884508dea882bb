// What crosses ranks, by the counters: for the SSM it does not grow with the sequence, for attention it
// shrinks with the TransPoint, and each is exchanged once a layer.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/parallel/worlds.h"

namespace transmamba {
namespace {

/// Two mixers of one TransPoint.
Config mixers(std::int64_t tokens, const std::string& transpoint) {
  Config c;
  c.model.vocab_size = 11;
  c.model.hidden_size = 8;
  c.model.num_layers = 2;
  c.model.layer_pattern = "T";
  c.model.num_heads = 2;
  c.model.qk_head_dim = 4;
  c.model.v_head_dim = 6;
  c.model.ffn_hidden_size = 8;
  c.model.transpoints = transpoint;
  c.train.seq_len = tokens;
  c.train.micro_batch = 1;
  c.train.global_batch = 1;
  c.train.dtype = "float64";
  c.optimizer.warmup_steps = 0;
  c.parallel.cp = 4;
  return c;
}

/// All ranks' traffic of one step for a purpose.
Traffic traffic(const Config& config, const std::string& purpose) {
  std::vector<Traffic> ranks(4);
  testing::train_on_threads(config, 4, 1, [&](Communicator& world, Engine&) {
    ranks[static_cast<std::size_t>(world.rank())] = world.recorder().total(purpose);
  });
  Traffic sum;
  for (const Traffic& t : ranks) sum += t;
  return sum;
}

class Layouts : public ::testing::TestWithParam<const char*> {
 protected:
  Config config(std::int64_t tokens, const std::string& transpoint) const {
    Config c = mixers(tokens, transpoint);
    c.parallel.cp_layout = GetParam();
    return c;
  }
};

TEST_P(Layouts, HandOverStatesInBytesThatDoNotGrowWithTheSequence) {
  for (const char* purpose :
       {"state handoff", "state handoff gradients", "conv halo", "conv halo gradients"}) {
    const Traffic brief = traffic(config(128, "0"), purpose), longer = traffic(config(512, "0"), purpose);
    EXPECT_GT(brief.bytes, 0) << purpose;
    EXPECT_EQ(longer.bytes, brief.bytes) << purpose;
    EXPECT_EQ(longer.calls, brief.calls) << purpose;
  }
}

TEST_P(Layouts, HandOverStatesOnceALayerAndPass) {
  EXPECT_EQ(traffic(config(64, "16"), "state handoff").calls, 4 * 2);  // ranks and mixers
  EXPECT_EQ(traffic(config(64, "16"), "state handoff gradients").calls, 4 * 2);
}

TEST_P(Layouts, HandOverNoStatesWhereAllTokensAttend) {
  EXPECT_EQ(traffic(config(64, "T"), "state handoff").calls, 0);
  EXPECT_EQ(traffic(config(64, "T"), "state handoff gradients").calls, 0);
}

TEST_P(Layouts, GatherKeysAndValuesOfThePrefixOnly) {
  for (const char* purpose :
       {"prefix keys", "prefix values", "prefix key gradients", "prefix value gradients"}) {
    const std::int64_t all = traffic(config(256, "T"), purpose).bytes,
                       half = traffic(config(256, "128"), purpose).bytes,
                       eighth = traffic(config(256, "32"), purpose).bytes,
                       none = traffic(config(256, "0"), purpose).bytes;
    EXPECT_GT(all, half) << purpose;
    EXPECT_GE(half, 2 * eighth) << purpose;
    EXPECT_EQ(none, 0) << purpose;
    // Never more than every rank having every key of the prefix; gathered twice, gradients sent back once.
    const std::int64_t width = 2 * (std::string_view(purpose).find("key") != std::string_view::npos ? 4 : 6),
                       times = std::string_view(purpose).find("gradients") != std::string_view::npos ? 1 : 2;
    EXPECT_LE(half, 2 * times * 3 * 128 * width * std::int64_t{sizeof(double)}) << purpose;
  }
}

INSTANTIATE_TEST_SUITE_P(All, Layouts, ::testing::Values("contiguous", "zigzag", "striped"),
                         [](const auto& info) { return std::string(info.param); });

TEST(StateHandoff, SendsOneSummaryASegment) {
  Config c = mixers(64, "0");
  c.parallel.cp_layout = "contiguous";
  // h (n p + 1) numbers from each of 4 ranks to those after it, in each of two mixers, and back.
  for (const char* purpose : {"state handoff", "state handoff gradients"})
    EXPECT_EQ(traffic(c, purpose).bytes, 2 * (3 + 2 + 1) * 2 * (4 * 6 + 1) * std::int64_t{sizeof(double)});
}

}  // namespace
}  // namespace transmamba
