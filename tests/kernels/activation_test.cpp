// The activations with parameters of their own or none: step sizes and SwiGLU.
#include "kernels/step_size.h"
#include "kernels/swiglu.h"
#include "testing.h"

namespace transmamba {
namespace {

using namespace transmamba::testing;  // NOLINT

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

TEST(StepSize, AgreesWithTheDefinition) {
  for (const Variant& variant : variants()) {
    Arrays arrays(variant);
    const Array raw = arrays.normal({2, 30, 19}, 4), bias = arrays.normal({19}),
                dt = arrays.poisoned({2, 30, 19});
    step_size({raw, bias, dt}, variant.stream);
    EXPECT_TRUE(near(dt, [&](auto& at) {
      return std::log1p(std::exp(raw({at[0], at[1], at[2]}) + bias({at[2]})));
    }));
  }
}

TEST(StepSize, SmallAndLargeOnesKeepTheirRelativeAccuracy) {
  for (const Variant& variant : variants()) {
    Arrays arrays(variant);
    const Array raw = arrays.poisoned({1, 1, 161}), bias = arrays.poisoned({161}),
                dt = arrays.poisoned({1, 1, 161});
    const Array ones = arrays.poisoned({1, 1, 161}), draw = arrays.poisoned({1, 1, 161}),
                dbias = arrays.poisoned({161});
    for (std::int64_t k = 0; k < 161; ++k) {
      set(raw, {0, 0, k}, static_cast<double>(k - 80)), set(bias, {k}, 0);
      set(ones, {0, 0, k}, 1), set(dbias, {k}, 0);
    }
    step_size({raw, bias, dt}, variant.stream);
    step_size_backward({ones, dt, draw, dbias}, variant.stream);
    for (std::int64_t k = 0; k < 161; ++k) {
      const double x = static_cast<double>(k - 80), expected = std::log1p(std::exp(x));
      EXPECT_NEAR(dt({0, 0, k}) / expected, 1, tolerance(variant.dtype)) << x;
      EXPECT_NEAR(draw({0, 0, k}) / sigmoid(x), 1, tolerance(variant.dtype)) << x;
    }
  }
}

TEST(StepSize, GradientsAgreeWithFiniteDifferences) {
  for (Layout layout : {Layout::contiguous, Layout::strided}) {
    Arrays arrays({DType::f64, layout, {}});
    const Array raw = arrays.normal({2, 25, 3}), bias = arrays.normal({3}), dt = arrays.poisoned({2, 25, 3});
    const Array ddt = arrays.normal({2, 25, 3}), draw = arrays.poisoned({2, 25, 3}),
                dbias = arrays.poisoned({3});
    for (std::int64_t k = 0; k < 3; ++k) set(dbias, {k}, 0);
    step_size({raw, bias, dt}, {});
    step_size_backward({ddt, dt, draw, dbias}, {});
    const auto loss = [&] {
      step_size({raw, bias, dt}, {});
      return dot(dt, ddt);
    };
    EXPECT_TRUE(is_gradient(draw, raw, loss));
    EXPECT_TRUE(is_gradient(dbias, bias, loss));
  }
}

TEST(StepSize, GradientsAgreeInEveryVariantAndAdd) {
  for (const Variant& variant : variants()) {
    Arrays arrays(variant);
    const Array dt = arrays.uniform({2, 150, 5}, 1e-3, 2), ddt = arrays.normal({2, 150, 5});
    const Array dbias = arrays.normal({5});
    Array before({5}, DType::f64), direction({2, 150, 5}, DType::f64);
    before.assign(dbias), direction.assign(ddt);
    step_size_backward({ddt, dt, ddt, dbias}, variant.stream);  // draw may alias ddt
    const auto draw = [&](std::int64_t i, std::int64_t j, std::int64_t k) {
      return -direction({i, j, k}) * std::expm1(-dt({i, j, k}));
    };
    EXPECT_TRUE(near(ddt, [&](auto& at) { return draw(at[0], at[1], at[2]); }));
    EXPECT_TRUE(near(dbias, [&](auto& at) {
      double sum = before({at[0]});
      for (std::int64_t i = 0; i < 2; ++i)
        for (std::int64_t j = 0; j < 150; ++j) sum += draw(i, j, at[0]);
      return sum;
    }));
  }
}

TEST(StepSize, RepeatsHaveTheSameBits) {
  for (const auto& [one, two] : repeats()) {
    Arrays arrays(one);
    const Array dt = arrays.uniform({2, 500, 5}, 1e-3, 2), ddt = arrays.normal({2, 500, 5});
    std::vector<Array> sums;
    for (const TestStream& stream : {one.stream, two.stream, TestStream{one.stream.device, 3}}) {
      const Array draw = arrays.dense({2, 500, 5}), dbias = arrays.dense({5});
      for (std::int64_t k = 0; k < 5; ++k) set(dbias, {k}, 0);
      step_size_backward({ddt, dt, draw, dbias}, stream);
      sums.push_back(dbias);
    }
    EXPECT_TRUE(same_bits(sums[0], sums[1]) && same_bits(sums[0], sums[2]));
  }
}

TEST(Swiglu, AgreesWithTheDefinition) {
  for (const Variant& variant : variants()) {
    Arrays arrays(variant);
    const Array x = arrays.normal({2, 9, 2 * 37}, 3), y = arrays.poisoned({2, 9, 37});
    swiglu({x, y}, variant.stream);
    EXPECT_TRUE(near(y, [&](auto& at) {
      const double gate = x({at[0], at[1], at[2]}), up = x({at[0], at[1], at[2] + 37});
      return gate * sigmoid(gate) * up;
    }));
  }
}

TEST(Swiglu, GradientsAgreeWithFiniteDifferences) {
  Arrays arrays({DType::f64, Layout::strided, {}});
  const Array x = arrays.normal({2, 3, 10}), y = arrays.poisoned({2, 3, 5}), dy = arrays.normal({2, 3, 5});
  const Array dx = arrays.poisoned({2, 3, 10});
  swiglu_backward({dy, x, dx}, {});
  EXPECT_TRUE(is_gradient(dx, x, [&] {
    swiglu({x, y}, {});
    return dot(y, dy);
  }));
}

TEST(Swiglu, GradientsAgreeInEveryVariantAlsoInPlace) {
  Arrays reference({});
  const Array x = reference.normal({2, 50, 74}), dy = reference.normal({2, 50, 37}),
              dx({2, 50, 74}, DType::f64);
  swiglu_backward({dy, x, dx}, {});
  for (const Variant& variant : variants()) {
    Arrays arrays(variant);
    const Array in_place = arrays.normal({2, 50, 74});
    swiglu_backward({arrays.normal({2, 50, 37}), in_place, in_place}, variant.stream);
    EXPECT_TRUE(near(in_place, [&](auto& at) { return get(dx, at); }));
  }
}

TEST(Activations, NoTokensWork) {
  for (const Variant& variant : variants()) {
    Arrays arrays(variant);
    const Array none = arrays.poisoned({2, 0, 6}), half = arrays.poisoned({2, 0, 3}),
                bias = arrays.normal({6});
    step_size({none, bias, none}, variant.stream);
    step_size_backward({none, none, none, bias}, variant.stream);
    swiglu({none, half}, variant.stream);
    swiglu_backward({half, none, none}, variant.stream);
  }
}

TEST(Activations, BadArgumentsAreNamed) {
  const Array x({2, 3, 6}, DType::f64), y({2, 3, 3}, DType::f64), bias({3}, DType::f64);
  EXPECT_TRUE(fails_naming([&] { step_size({x, bias, x}, {}); }, {"[step_size]", "bias", "(6)", "(3)"}));
  EXPECT_TRUE(fails_naming(
      [&] {
        step_size_backward({x, y, y, bias}, {});
      },
      {"[step_size_backward]", "ddt"}));
  EXPECT_TRUE(fails_naming([&] { swiglu({y, y}, {}); }, {"[swiglu]", "gate_up", "(2, 3, 6)", "(2, 3, 3)"}));
  EXPECT_TRUE(fails_naming([&] { swiglu_backward({y, x, y}, {}); }, {"[swiglu_backward]", "dgate_up"}));
}

}  // namespace
}  // namespace transmamba
