#include "parallel/model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "kernels/elementwise.h"

namespace transmamba {
namespace {

ModelConfig small(const std::string& gate = "ssm", bool converter = true) {
  ModelConfig c;
  c.vocab_size = 19;
  c.hidden_size = 12;
  c.num_layers = 5;
  c.layer_pattern = "T-T";
  c.num_heads = 3;
  c.qk_head_dim = 6;
  c.v_head_dim = 4;
  c.ffn_hidden_size = 20;
  c.conv_width = 4;
  c.init_std = 0.5;  // far from a linear model
  c.gate = gate;
  c.memory_converter = converter;
  return c;
}

struct World {
  Allocator memory;
  Context context;
  explicit World(DType dtype = DType::f64, int threads = 1)
      : context{{Device::cpu, threads, nullptr}, dtype, &memory} {}

  Tensor tokens(std::int64_t b, std::int64_t t, unsigned seed = 1) const {
    const Tensor out = context.empty({b, t}, DType::i32);
    std::mt19937 generator(seed);
    for (std::int64_t i = 0; i < out.numel(); ++i)
      out.ptr<std::int32_t>()[i] = static_cast<std::int32_t>(generator() % 19);
    return out;
  }
};

/// Tokens [begin, end) of (b, t), contiguous.
Tensor columns(const Context& context, const Tensor& tokens, std::int64_t begin, std::int64_t end) {
  const Tensor out = context.empty({tokens.dim(0), end - begin}, DType::i32);
  for (std::int64_t b = 0; b < tokens.dim(0); ++b)
    std::copy_n(tokens.ptr<std::int32_t>(b, begin), end - begin, out.ptr<std::int32_t>(b));
  return out;
}

double largest_difference(const Tensor& a, const Tensor& b) {
  double largest = 0;
  for (std::int64_t i = 0; i < a.dim(0); ++i)
    for (std::int64_t j = 0; j < a.dim(1); ++j)
      for (std::int64_t k = 0; k < a.dim(2); ++k) {
        const double difference = std::abs(*a.ptr<double>(i, j, k) - *b.ptr<double>(i, j, k));
        if (!(difference <= largest)) largest = difference;  // NaN wins
      }
  return largest;
}

using Schedule = std::vector<std::int64_t>;
const std::vector<Schedule> kSchedules = {{0, 0, 0},   {0, 1, 2},      {3, 17, 36},
                                          {40, 40, 0}, {36, 37, 1000}, {5, 5, 5}};

TEST(Decoding, TokenByTokenGivesTheLogitsOfTheParallelForwardPass) {
  for (const char* gate : {"ssm", "all", "none"})
    for (const Schedule& transpoints : kSchedules) {
      const World w;
      Model model(small(gate), transpoints, w.context);
      model.parameters().initialise(3);
      const std::int64_t t = 37;
      const Tensor tokens = w.tokens(2, t), expected = model.forward(w.context, tokens, nullptr);
      Model::Cache cache(w.context, model, 2, t);
      for (std::int64_t i = 0; i < t; ++i) {
        const Tensor logits = model.decode(w.context, columns(w.context, tokens, i, i + 1), cache);
        ASSERT_LT(largest_difference(logits, expected.slice(1, i, i + 1)), 1e-11)
            << "token " << i << " gate " << gate;
      }
    }
}

TEST(Decoding, AnyCutIntoRunsOfTokensGivesTheSameLogits) {
  for (const bool converter : {true, false})
    for (const Schedule& transpoints : kSchedules) {
      const World w;
      Model model(small("ssm", converter), transpoints, w.context);
      model.parameters().initialise(4);
      const Tensor tokens = w.tokens(1, 37), expected = model.forward(w.context, tokens, nullptr);
      Model::Cache cache(w.context, model, 1, 37);
      std::int64_t begin = 0;
      for (std::int64_t run : {2, 1, 15, 18, 1}) {
        const Tensor logits = model.decode(w.context, columns(w.context, tokens, begin, begin + run), cache);
        ASSERT_LT(largest_difference(logits, expected.slice(1, begin, begin + run)), 1e-11)
            << "run at " << begin;
        begin += run;
      }
    }
}

TEST(Decoding, KeysAndValuesAreFreedAtTheTransPoint) {
  const World w;
  Model model(small(), Schedule{0, 4, 1000}, w.context);
  model.parameters().initialise(1);
  Model::Cache cache(w.context, model, 1, 8);
  for (std::int64_t i = 0; i < 8; ++i) {
    model.decode(w.context, columns(w.context, w.tokens(1, 8), i, i + 1), cache);
    const bool converted = i + 1 >= 4;
    EXPECT_EQ(static_cast<bool>(cache.mixers[1].k), !converted);
    EXPECT_EQ(static_cast<bool>(cache.mixers[1].state), converted);
  }
  EXPECT_TRUE(cache.mixers[0].state && !cache.mixers[0].k);
  EXPECT_TRUE(!cache.mixers[2].state && cache.mixers[2].k);
}

TEST(Model, AttentionAndTheSsmMeetWithoutASeamInTheState) {
  // With the converter, the states at the end do not depend on where attention stopped: the first mixer sees
  // the same input whatever its TransPoint.
  const World w;
  const Tensor tokens = w.tokens(2, 70);
  std::vector<Tensor> last;
  for (std::int64_t p : {0, 1, 33, 64, 70}) {
    Model model(small(), Schedule{p, 0, 0}, w.context);
    model.parameters().initialise(5);
    Model::Saved saved;
    saved.keep_states = true;
    model.forward(w.context, tokens, &saved);
    last.push_back(std::get<Mixer::Saved>(saved.layers[0].inner).last_state.merge(2));
    EXPECT_LT(largest_difference(last.back(), last.front()), 1e-13) << "P " << p;
  }
}

TEST(Model, ATransPointPastTheSequenceIsATransformer) {
  const World w;
  const Tensor tokens = w.tokens(1, 20);
  Model at(small(), Schedule{20, 20, 20}, w.context), past(small(), Schedule{21, 500, 1 << 30}, w.context);
  at.parameters().initialise(6), past.parameters().initialise(6);
  EXPECT_EQ(
      largest_difference(at.forward(w.context, tokens, nullptr), past.forward(w.context, tokens, nullptr)),
      0);
}

TEST(Model, ThreadsDoNotChangeASingleBitOfTheGradients) {
  std::vector<std::vector<float>> grads;
  for (int threads : {1, 2, 3}) {
    const World w(DType::f32, threads);
    ModelConfig config = small();
    config.hidden_size = 256;  // wide enough for products that are cut into tiles
    config.ffn_hidden_size = 512;
    Model model(config, Schedule{0, 130, 290}, w.context);
    model.parameters().initialise(7);
    Model::Saved saved;
    const Tensor logits = model.forward(w.context, w.tokens(2, 300), &saved);
    model.token_losses(w.context, logits, w.tokens(2, 300, 2), &saved);
    model.backward(w.context, 1.0 / 600, saved);
    const Tensor& flat = model.parameters().grads();
    grads.emplace_back(flat.ptr<float>(), flat.ptr<float>() + flat.numel());
  }
  for (const auto& other : grads)
    EXPECT_EQ(std::memcmp(other.data(), grads[0].data(), other.size() * sizeof(float)), 0);
}

TEST(Model, InitialValuesDependOnlyOnSeedNameAndPlace) {
  const World w;
  ModelConfig two = small(), four = small();
  two.num_layers = 2, four.num_layers = 4;
  Model a(two, Schedule{0}, w.context), b(four, Schedule{0, 0, 0}, w.context);
  a.parameters().initialise(8), b.parameters().initialise(8);
  int compared = 0;
  for (const Parameter& x : a.parameters().parameters())
    for (const Parameter& y : b.parameters().parameters())
      if (x.name == y.name && x.name.find("out_proj") == std::string::npos &&
          x.name.find("down_proj") == std::string::npos) {
        EXPECT_EQ(std::memcmp(x.value.raw(), y.value.raw(),
                              static_cast<std::size_t>(x.value.numel()) * sizeof(double)),
                  0)
            << x.name;
        ++compared;
      }
  EXPECT_EQ(compared, 22);
  b.parameters().initialise(9);
  EXPECT_NE(*a.parameters().parameters()[0].value.ptr<double>(),
            *b.parameters().parameters()[0].value.ptr<double>());
}

TEST(Model, MemoryOfAMambaGrowsLinearlyWithTheSequence) {
  const auto activations = [](std::int64_t t) {
    World w(DType::f32);
    Model model(small(), Schedule{0, 0, 0}, w.context);
    model.parameters().initialise(1);
    const std::int64_t before = w.memory.bytes_in_use();
    Model::Saved saved;
    const Tensor logits = model.forward(w.context, w.tokens(1, t), &saved);
    model.token_losses(w.context, logits, w.tokens(1, t), &saved);
    model.backward(w.context, 1, saved);
    return static_cast<double>(w.memory.peak_bytes() - before);
  };
  EXPECT_NEAR(activations(4000) / activations(2000), 2, 0.02);
}

TEST(Model, NeedsATransPointAMixer) {
  const World w;
  EXPECT_THROW(Model(small(), Schedule{0, 1}, w.context), Error);
}

}  // namespace
}  // namespace transmamba
