#include "kernels/rms_norm.h"

#include "testing.h"

namespace transmamba {
namespace {

using namespace transmamba::testing;  // NOLINT

constexpr double kEps = 1e-5;

struct Problem {
  Variant variant;
  Array x, gate, weight, y, dy, dresidual, dx, dgate, dweight;

  Problem(const Variant& v, const Shape& s, bool gated, bool residual = true) : variant(v) {
    Arrays arrays(v);
    x = arrays.normal(s), dy = arrays.normal(s), weight = arrays.uniform({s[2], s[3]}, 0.8, 1.2);
    y = arrays.poisoned(s), dx = arrays.poisoned(s);
    dweight = arrays.normal({s[2], s[3]});
    if (gated) gate = arrays.normal(s), dgate = arrays.poisoned(s);
    if (residual) dresidual = arrays.normal(s);
  }
  void forward() const { rms_norm({x, gate, weight, y, kEps}, variant.stream); }
  void backward() const {
    rms_norm_backward({dy, x, gate, weight, dresidual, dx, dgate, dweight, kEps}, variant.stream);
  }
  double gated(std::vector<std::int64_t> at) const {
    const double z = gate->raw() ? gate(at) : 0;
    return x(at) * (gate->raw() ? z / (1 + std::exp(-z)) : 1);
  }
  double expected_rstd(std::int64_t i, std::int64_t j, std::int64_t g) const {
    double sum = 0;
    for (std::int64_t k = 0; k < x->dim(3); ++k) sum += std::pow(gated({i, j, g, k}), 2);
    return 1 / std::sqrt(sum / static_cast<double>(x->dim(3)) + kEps);
  }
};

TEST(RmsNorm, AgreesWithTheDefinition) {
  for (const Variant& variant : variants())
    for (bool gated : {false, true})
      for (const Shape& shape : {Shape{2, 5, 3, 37}, Shape{1, 40, 1, 256}, Shape{3, 1, 2, 1}}) {
        const Problem s(variant, shape, gated);
        s.forward();
        const Array rstd({shape[0], shape[1], shape[2]}, DType::f64);
        for_each_index(rstd->shape(), [&](auto& at) { set(rstd, at, s.expected_rstd(at[0], at[1], at[2])); });
        EXPECT_TRUE(near(s.y, [&](auto& at) {
          return s.gated(at) * rstd({at[0], at[1], at[2]}) * s.weight({at[2], at[3]});
        }));
      }
}

TEST(RmsNorm, MayWriteOverItsInput) {
  for (const TestStream& stream : streams())
    for (bool gated : {false, true}) {
      const Problem s({DType::f64, Layout::contiguous, stream}, {2, 5, 3, 300}, gated);
      s.forward();
      rms_norm({s.x, s.gate, s.weight, s.x, kEps}, stream);
      EXPECT_TRUE(same_bits(s.x, s.y));
    }
}

TEST(RmsNorm, GradientsAgreeWithFiniteDifferences) {
  for (Layout layout : {Layout::contiguous, Layout::strided})
    for (bool gated : {false, true})
      for (bool residual : {false, true}) {
        const Problem s({DType::f64, layout, {}}, {2, 20, 2, 5}, gated, residual);
        for_each_index(s.dweight->shape(), [&](auto& at) { set(s.dweight, at, 0); });
        s.forward(), s.backward();
        const auto loss = [&] {
          s.forward();
          return dot(s.y, s.dy) + (residual ? dot(s.x, s.dresidual) : 0);
        };
        EXPECT_TRUE(is_gradient(s.dx, s.x, loss)) << gated << residual;
        if (gated) {
          EXPECT_TRUE(is_gradient(s.dgate, s.gate, loss)) << residual;
        }
        EXPECT_TRUE(is_gradient(s.dweight, s.weight, loss)) << gated << residual;
      }
}

TEST(RmsNorm, GradientsAgreeInEveryVariant) {
  for (bool gated : {false, true}) {
    const Problem reference({}, {2, 100, 3, 40}, gated);
    reference.forward(), reference.backward();
    for (const Variant& variant : variants()) {
      const Problem s(variant, {2, 100, 3, 40}, gated);
      s.forward(), s.backward();
      EXPECT_TRUE(near(s.dx, [&](auto& at) { return get(reference.dx, at); }));
      if (gated) {
        EXPECT_TRUE(near(s.dgate, [&](auto& at) { return get(reference.dgate, at); }));
      }
      EXPECT_TRUE(near(s.dweight, [&](auto& at) { return get(reference.dweight, at); }));
    }
  }
}

TEST(RmsNorm, GradientMayWriteOverWhatItReads) {
  for (const TestStream& on : streams())
    for (bool gated : {false, true}) {
      const Variant variant{DType::f64, Layout::contiguous, on};
      const Shape shape{2, 20, 2, 300};
      const Problem a(variant, shape, gated), b(variant, shape, gated), c(variant, shape, gated);
      a.forward(), a.backward();
      rms_norm_backward({b.dy, b.x, b.gate, b.weight, b.dresidual, b.dy, b.dgate, b.dweight, kEps}, on);
      rms_norm_backward({c.dy, c.x, c.gate, c.weight, c.dresidual, c.dresidual, c.dgate, c.dweight, kEps},
                        on);
      EXPECT_TRUE(same_bits(a.dx, b.dy) && same_bits(a.dx, c.dresidual));
      EXPECT_TRUE(same_bits(a.dweight, b.dweight) && same_bits(a.dweight, c.dweight));
    }
}

TEST(RmsNorm, Float32GradientTakesOutThePartAlongTheInput) {
  for (const TestStream& stream : streams()) {
    const Problem s({DType::f32, Layout::contiguous, stream}, {4, 200, 1, 8}, false, false);
    rms_norm_backward({s.dy, s.x, {}, s.weight, {}, s.dx, {}, s.dweight, 0}, stream);
    EXPECT_NEAR(dot(s.dx, s.x) / dot(s.dy, s.dy), 0, 1e-8);  // exactly 0; 1e-7 where sums are float32
  }
}

TEST(RmsNorm, RepeatsHaveTheSameBits) {
  for (const auto& [one, two] : repeats()) {
    const Problem a(one, {2, 300, 2, 70}, true), b(two, {2, 300, 2, 70}, true);
    a.forward(), b.forward(), a.backward(), b.backward();
    EXPECT_TRUE(same_bits(a.y, b.y) && same_bits(a.dx, b.dx));
    EXPECT_TRUE(same_bits(a.dgate, b.dgate) && same_bits(a.dweight, b.dweight));
  }
}

TEST(RmsNorm, NoTokensChangeNothing) {
  for (const Variant& variant : variants())
    for (const Shape& shape : {Shape{2, 0, 2, 5}, Shape{0, 3, 2, 5}}) {
      const Problem s(variant, shape, true), before(variant, shape, true);
      s.forward(), s.backward();
      EXPECT_TRUE(same_bits(s.dweight, before.dweight));
    }
}

TEST(RmsNorm, BadArgumentsAreNamed) {
  const Problem s({}, {2, 5, 3, 7}, true);
  const Array bad({2, 5, 3, 6}, DType::f64);
  EXPECT_TRUE(fails_naming([&] { rms_norm({s.x, bad, s.weight, s.y}, {}); }, {"[rms_norm]", "gate"}));
  EXPECT_TRUE(fails_naming([&] { rms_norm({s.x, {}, bad, s.y}, {}); }, {"[rms_norm]", "weight", "(3, 7)"}));
  EXPECT_TRUE(fails_naming(
      [&] {
        rms_norm({s.weight, {}, s.weight, s.y}, {});
      },
      {"[rms_norm]", "x", "(b, t, g, d)"}));
  EXPECT_TRUE(fails_naming(
      [&] {
        rms_norm_backward({s.dy, s.x, s.gate, s.weight, {}, s.dx, {}, s.dweight}, {});
      },
      {"[rms_norm_backward]", "dgate"}));
}

}  // namespace
}  // namespace transmamba
