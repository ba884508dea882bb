// Every way to share the work gives what one rank gives.
#include <gtest/gtest.h>

#include <cmath>

#include "core/transpoint.h"
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
  c.parallel.bucket_mb = 1;
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
  for (const auto& [name, values] : expected.final)
    EXPECT_LT(relative_difference(got.final.at(name), values), tolerance) << name;
}

const Observed& serial() {
  static const Observed observed = train_on_threads(awkward(), 1, 3);
  return observed;
}

struct Degrees {
  std::int64_t tp, cp, pp, dp;
};

class Meshes : public ::testing::TestWithParam<Degrees> {};

TEST_P(Meshes, TrainLikeOneRank) {
  Config c = awkward();
  const auto [tp, cp, pp, dp] = GetParam();
  c.parallel.tp = tp, c.parallel.cp = cp, c.parallel.pp = pp, c.parallel.dp = dp;
  expect_equal(train_on_threads(c, static_cast<int>(tp * cp * pp * dp), 3), serial(), 1e-10);
}

std::vector<Degrees> factorisations(std::int64_t ranks) {
  std::vector<Degrees> all;
  for (std::int64_t tp = 1; tp <= ranks; ++tp)
    for (std::int64_t cp = 1; tp * cp <= ranks; ++cp)
      for (std::int64_t pp = 1; tp * cp * pp <= ranks; ++pp)
        if (ranks % (tp * cp * pp) == 0) all.push_back({tp, cp, pp, ranks / (tp * cp * pp)});
  return all;
}

std::string name_of(const ::testing::TestParamInfo<Degrees>& info) {
  const auto [tp, cp, pp, dp] = info.param;
  return "tp" + std::to_string(tp) + "cp" + std::to_string(cp) + "pp" + std::to_string(pp) + "dp" +
         std::to_string(dp);
}

INSTANTIATE_TEST_SUITE_P(OfTwo, Meshes, ::testing::ValuesIn(factorisations(2)), name_of);
INSTANTIATE_TEST_SUITE_P(OfFour, Meshes, ::testing::ValuesIn(factorisations(4)), name_of);
INSTANTIATE_TEST_SUITE_P(OfEight, Meshes, ::testing::ValuesIn(factorisations(8)), name_of);

}  // namespace
}  // namespace transmamba
