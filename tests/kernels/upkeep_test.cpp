// Kernels on whole tensors: AdamW, fill, copy, add, sum.
#include "kernels/adamw.h"
#include "kernels/elementwise.h"
#include "testing.h"

namespace transmamba {
namespace {

using namespace transmamba::testing;  // NOLINT

TEST(AdamW, AgreesWithTheDefinition) {
  for (const Variant& variant : variants()) {
    Arrays arrays(variant);
    const Shape shape{20000};  // more than one block
    const Array weight = arrays.normal(shape), grad = arrays.normal(shape), m = arrays.normal(shape);
    const Array v = arrays.uniform(shape, 0.1, 2);
    Array w0(shape, DType::f64), m0(shape, DType::f64), v0(shape, DType::f64);
    w0.assign(weight), m0.assign(m), v0.assign(v);
    adamw({.weight = weight,
           .grad = grad,
           .m = m,
           .v = v,
           .grad_scale = 0.5,
           .lr = 0.01,
           .beta1 = 0.8,
           .beta2 = 0.9,
           .eps = 1e-3,
           .weight_decay = 0.1,
           .step = 3},
          variant.stream);
    const auto m1 = [&](auto& at) { return 0.8 * get(m0, at) + 0.2 * 0.5 * get(grad, at); };
    const auto v1 = [&](auto& at) { return 0.9 * get(v0, at) + 0.1 * std::pow(0.5 * get(grad, at), 2); };
    EXPECT_TRUE(near(m, m1));
    EXPECT_TRUE(near(v, v1));
    EXPECT_TRUE(near(weight, [&](auto& at) {
      const double step =
          m1(at) / (1 - std::pow(0.8, 3)) / (std::sqrt(v1(at) / (1 - std::pow(0.9, 3))) + 1e-3);
      return get(w0, at) - 0.01 * (step + 0.1 * get(w0, at));
    }));
  }
}

TEST(AdamW, AZeroGradientFromTheStartOnlyDecays) {
  const Array weight({3}, DType::f32), zero({3}, DType::f32), m({3}, DType::f32), v({3}, DType::f32);
  fill({2, weight}, {}), fill({0, zero}, {}), fill({0, m}, {}), fill({0, v}, {});
  adamw({.weight = weight, .grad = zero, .m = m, .v = v, .lr = 0.5, .weight_decay = 0.1}, {});
  EXPECT_TRUE(near(weight, [](auto&) { return 1.9; }));
}

TEST(AdamW, MomentsThatFadeBecomeZero) {
  for (const TestStream& stream : streams()) {
    Arrays arrays({DType::f32, Layout::contiguous, stream});
    const Array weight = arrays.dense({2}), zero = arrays.dense({2}), m = arrays.dense({2}),
                v = arrays.dense({2});
    for (std::int64_t i : {0, 1}) {
      set(weight, {i}, 1), set(zero, {i}, 0);
      set(m, {i}, i == 0 ? -1e-31 : -1e-28), set(v, {i}, i == 0 ? 1e-31 : 1e-28);
    }
    adamw({.weight = weight, .grad = zero, .m = m, .v = v, .lr = 0.5}, stream);
    EXPECT_EQ(m({0}), 0);
    EXPECT_EQ(v({0}), 0);
    EXPECT_NE(m({1}), 0);
    EXPECT_NE(v({1}), 0);
  }
}

TEST(AdamW, ChangesNothingUnlessNormAndLossAreFinite) {
  constexpr double kInfinite = std::numeric_limits<double>::infinity();
  for (const TestStream& stream : streams())
    for (const auto& [squared_norm, loss, changes] : {std::tuple{4.0, 2.0, true},
                                                      {kInfinite, 2.0, false},
                                                      {std::nan(""), 2.0, false},
                                                      {4.0, kInfinite, false}}) {
      Arrays arrays({DType::f32, Layout::contiguous, stream});
      const Array weight = arrays.dense({5}), grad = arrays.dense({5}), m = arrays.dense({5}),
                  v = arrays.dense({5});
      const Array norm = arrays.dense({1}, DType::f64), total = arrays.dense({1}, DType::f64);
      for (const Array* x : {&weight, &grad, &m, &v}) fill_with(*x, 0.5);
      set(norm, {0}, squared_norm), set(total, {0}, loss);
      adamw({.weight = weight, .grad = grad, .m = m, .v = v, .squared_norm = norm, .loss = total, .lr = 0.1},
            stream);
      for (const Array* x : {&weight, &m, &v})
        EXPECT_EQ((*x)({3}) == 0.5, !changes) << squared_norm << " " << loss;
    }
}

TEST(AdamW, BadArgumentsAreNamed) {
  const Array x({3}, DType::f64), y({4}, DType::f64), single({3}, DType::f32), none({0}, DType::f64);
  EXPECT_TRUE(
      fails_naming([&] { adamw({.weight = x, .grad = y, .m = x, .v = x}, {}); }, {"[adamw]", "grad", "(3)"}));
  EXPECT_TRUE(fails_naming([&] { adamw({.weight = x, .grad = x, .m = single, .v = x}, {}); },
                           {"[adamw]", "m:", "float32"}));
  EXPECT_TRUE(fails_naming([&] { adamw({.weight = x, .grad = x, .m = x, .v = x, .step = 0}, {}); },
                           {"[adamw]", "step", "0"}));
  adamw({.weight = none, .grad = none, .m = none, .v = none}, {});
}

const std::vector<Shape>& shapes() {
  static const std::vector<Shape> all{{},        {7},     {3, 1},    {2, 3, 4, 5}, {1, 2, 1, 3, 1},
                                      {2, 0, 3}, {40000}, {3, 9000}, {5000, 3}};
  return all;
}

TEST(Elementwise, FillCopyAndAddWorkOnEveryShapeAndLayout) {
  for (const Variant& variant : variants())
    for (const Shape& shape : shapes()) {
      Arrays arrays(variant);
      const Array x = arrays.normal(shape), y = arrays.poisoned(shape), dense = arrays.dense(shape);
      fill({1.5, y}, variant.stream);
      EXPECT_TRUE(near(y, 0, [](auto&) { return 1.5; })) << to_string(shape);
      add({x, y}, variant.stream);
      EXPECT_TRUE(near(y, [&](auto& at) { return 1.5 + get(x, at); })) << to_string(shape);
      copy({x, dense}, variant.stream);  // from this layout to a contiguous one
      EXPECT_TRUE(near(dense, 0, [&](auto& at) { return get(x, at); })) << to_string(shape);
      y.fill_poison();
      copy({dense, y}, variant.stream);
      EXPECT_TRUE(near(y, 0, [&](auto& at) { return get(x, at); })) << to_string(shape);
    }
}

TEST(Sum, AgreesWithTheDefinitionAndAdds) {
  for (DType dtype : {DType::f64, DType::f32})
    for (const Shape& shape : shapes())
      for (bool squares : {false, true}) {
        for (const auto& [one, two] : repeats(dtype)) {
          Arrays arrays(one);
          const Array x = arrays.normal(shape);
          double expected = 10;
          for_each_index(shape,
                         [&](auto& at) { expected += squares ? std::pow(get(x, at), 2) : get(x, at); });
          std::vector<Array> results;
          for (const TestStream& stream : {one.stream, two.stream}) {
            results.push_back(arrays.dense({1}, DType::f64));
            set(results.back(), {0}, 10);
            sum({x, squares, results.back()}, stream);
            EXPECT_TRUE(near(results.back(), [&](auto&) { return expected; })) << to_string(shape);
          }
          EXPECT_TRUE(same_bits(results[0], results[1]));
        }
      }
}

TEST(Elementwise, BadArgumentsAreNamed) {
  const Array x({3, 4}, DType::f64), y({4, 3}, DType::f64), result({1}, DType::f64), ints({3}, DType::i32);
  const Array slice({3, 4}, DType::f64, Layout::strided);
  EXPECT_TRUE(fails_naming([&] { copy({x, y}, {}); }, {"[copy]", "y:", "(3, 4)", "(4, 3)"}));
  EXPECT_TRUE(fails_naming([&] { add({x, y}, {}); }, {"[add]", "y:", "(3, 4)", "(4, 3)"}));
  EXPECT_TRUE(fails_naming([&] { fill({0, ints}, {}); }, {"[fill]", "int32"}));
  EXPECT_TRUE(fails_naming([&] { fill({0, View()}, {}); }, {"[fill]", "y:", "nothing"}));
  EXPECT_TRUE(fails_naming([&] { sum({slice, false, result}, {}); }, {"[sum]", "x:", "contiguous"}));
  EXPECT_TRUE(fails_naming([&] { sum({x, false, x}, {}); }, {"[sum]", "result", "(1)"}));
}

}  // namespace
}  // namespace transmamba
