// AdamW over buckets is AdamW over parameters.
#include "parallel/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/adamw.h"
#include "tests/parallel/small_run.h"

namespace transmamba {
namespace {

using testing::small_config;
using testing::SmallRun;

void set_gradients(const ParameterStore& store, std::int64_t step) {
  for (const Parameter& p : store.parameters())
    for (std::int64_t i = 0; i < p.grad.numel(); ++i)
      p.grad.ptr<double>()[i] = static_cast<double>((i * 37 + 11 * step) % 101 - 50) / 64;
}

TEST(Optimizer, UpdatesEachParameterAsIfItWereAlone) {
  const Config config = small_config();
  Allocator memory;
  const Context context{{}, DType::f64, &memory};
  const auto transpoints = resolve_transpoints(config.model, config.train.seq_len);
  Model model(config.model, transpoints, context), alone(config.model, transpoints, context);
  model.parameters().initialise(3), alone.parameters().initialise(3);
  Optimizer optimizer(config.optimizer, model.parameters(), context);
  std::map<std::string, std::vector<double>> m, v;
  for (std::int64_t step = 0; step < 3; ++step) {
    set_gradients(model.parameters(), step), set_gradients(alone.parameters(), step);
    const Tensor squares = context.empty({1}, DType::f64);
    fill({.value = 0, .y = squares}, context.stream);
    optimizer.add_squared_norm(context, squares);
    double expected = 0;
    for (const Parameter& p : alone.parameters().parameters())
      for (std::int64_t i = 0; i < p.grad.numel(); ++i) expected += std::pow(p.grad.ptr<double>()[i], 2);
    EXPECT_NEAR(*squares.ptr<double>(), expected, 1e-12 * expected);
    optimizer.step(context, step, 1e-2, squares);
    const OptimizerConfig& c = config.optimizer;
    const double scale = std::min(1.0, c.clip_grad / (std::sqrt(*squares.ptr<double>()) + 1e-6));
    EXPECT_LT(scale, 1);  // it clips
    for (const Parameter& p : alone.parameters().parameters()) {
      const auto flat = [&](std::byte* data) { return View(data, DType::f64, {p.value.numel()}); };
      const auto moment = [&](auto& moments) {
        moments[p.name].resize(static_cast<std::size_t>(p.value.numel()));
        return flat(reinterpret_cast<std::byte*>(moments[p.name].data()));
      };
      adamw({.weight = flat(p.value.raw()),
             .grad = flat(p.grad.raw()),
             .m = moment(m),
             .v = moment(v),
             .grad_scale = scale,
             .lr = 1e-2,
             .beta1 = c.beta1,
             .beta2 = c.beta2,
             .eps = c.eps,
             .weight_decay = p.weight_decay ? c.weight_decay : 0,
             .step = step + 1},
            context.stream);
    }
  }
  for (const OwnedRun& run : optimizer.owned()) {
    const Parameter& p = alone.parameters().parameters()[run.parameter];
    for (std::int64_t i = 0; i < p.value.numel(); ++i) {
      const auto k = static_cast<std::size_t>(i);
      ASSERT_EQ(optimizer.weights(run).ptr<double>()[i], p.value.ptr<double>()[i]) << p.name;
      ASSERT_EQ(optimizer.m(run).ptr<double>()[i], m[p.name][k]) << p.name;
      ASSERT_EQ(optimizer.v(run).ptr<double>()[i], v[p.name][k]) << p.name;
    }
  }
}

TEST(Optimizer, ChangesNothingWhereTheNormIsNotFinite) {
  SmallRun run(7);
  const auto before = run.bits();
  Allocator memory;
  const Context context{{}, DType::f32, &memory};
  const Tensor squares = context.empty({1}, DType::f64);
  for (const double bad : {std::numeric_limits<double>::infinity(), std::nan("")}) {
    *squares.ptr<double>() = bad;
    run.optimizer.step(context, 2, 1e-2, squares);
    EXPECT_EQ(run.bits(), before);
  }
}

}  // namespace
}  // namespace transmamba
