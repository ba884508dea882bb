// The CPU's convolution, of which its qkv_conv is made.
#include "kernels/cpu/conv.h"

#include "testing.h"

namespace transmamba {
namespace {

using namespace transmamba::testing;  // NOLINT

struct Problem {
  Variant variant;
  Array x, halo, weight, bias, y, dy, dx, dhalo, dweight, dbias;

  Problem(const Variant& v, std::int64_t b, std::int64_t t, std::int64_t c, std::int64_t w,
          bool with_halo = true)
      : variant(v) {
    Arrays arrays(v);
    x = arrays.normal({b, t, c}), dy = arrays.normal({b, t, c});
    weight = arrays.normal({c, w}, 0.5), bias = arrays.normal({c});
    y = arrays.poisoned({b, t, c}), dx = arrays.poisoned({b, t, c});
    dweight = arrays.normal({c, w}), dbias = arrays.normal({c});
    if (with_halo) halo = arrays.normal({b, w - 1, c}), dhalo = arrays.poisoned({b, w - 1, c});
  }
  void forward() const { cpu::conv({x, halo, weight, bias, y}, variant.stream); }
  void backward() const {
    cpu::conv_backward({dy, x, halo, weight, bias, dx, dhalo, dweight, dbias}, variant.stream);
  }
  double expected(std::vector<std::int64_t>& at) const {
    const std::int64_t w = weight->dim(1);
    double sum = bias({at[2]});
    for (std::int64_t j = 0; j < w; ++j) {
      const std::int64_t time = at[1] - w + 1 + j;
      const double input = time >= 0     ? x({at[0], time, at[2]})
                           : halo->raw() ? halo({at[0], w - 1 + time, at[2]})
                                         : 0;
      sum += weight({at[2], j}) * input;
    }
    return sum / (1 + std::exp(-sum));
  }
};

TEST(Conv, AgreesWithTheDefinition) {
  for (const Variant& variant : cpu_variants())
    for (std::int64_t w : {1, 2, 3, 4, 6})
      for (std::int64_t t : {1, 2, 5, 70})
        for (bool halo : {false, true}) {
          const Problem s(variant, 2, t, 19, w, halo);
          s.forward();
          EXPECT_TRUE(near(s.y, [&](auto& at) { return s.expected(at); })) << "w " << w << " t " << t;
        }
}

TEST(Conv, GradientsAgreeWithFiniteDifferences) {
  for (Layout layout : {Layout::contiguous, Layout::strided})
    for (std::int64_t w : {1, 2, 4})
      for (std::int64_t t : {1, 2, 7, 70}) {
        const Problem s({DType::f64, layout, {}}, 2, t, 3, w);
        for (const Array& sum : {s.dweight, s.dbias})
          for_each_index(sum->shape(), [&](auto& at) { set(sum, at, 0); });
        s.backward();
        const auto loss = [&] {
          s.forward();
          return dot(s.y, s.dy);
        };
        EXPECT_TRUE(is_gradient(s.dx, s.x, loss)) << "w " << w << " t " << t;
        EXPECT_TRUE(is_gradient(s.dhalo, s.halo, loss)) << "w " << w << " t " << t;
        EXPECT_TRUE(is_gradient(s.dweight, s.weight, loss)) << "w " << w << " t " << t;
        EXPECT_TRUE(is_gradient(s.dbias, s.bias, loss)) << "w " << w << " t " << t;
      }
}

TEST(Conv, GradientsOfParametersAddAndAgreeInEveryVariant) {
  for (std::int64_t w : {1, 4, 5})
    for (bool halo : {false, true}) {
      const Problem reference({}, 2, 200, w == 4 ? 300 : 7, w,
                              halo);  // several runs of tokens, channel tiles
      reference.backward();
      for (const Variant& variant : cpu_variants()) {
        const Problem s(variant, 2, 200, w == 4 ? 300 : 7, w, halo);
        s.backward();
        EXPECT_TRUE(near(s.dx, [&](auto& at) { return get(reference.dx, at); }));
        EXPECT_TRUE(near(s.dweight, [&](auto& at) { return get(reference.dweight, at); }));
        EXPECT_TRUE(near(s.dbias, [&](auto& at) { return get(reference.dbias, at); }));
        if (halo) {
          EXPECT_TRUE(near(s.dhalo, [&](auto& at) { return get(reference.dhalo, at); }));
        }
      }
    }
  const Problem reference({}, 2, 200, 300, 4);
  reference.backward();
  const Problem twice({}, 2, 200, 300, 4), before({}, 2, 200, 300, 4);
  twice.backward(), twice.backward();
  EXPECT_TRUE(near(twice.dweight,
                   [&](auto& at) { return 2 * get(reference.dweight, at) - get(before.dweight, at); }));
}

TEST(Conv, ASequenceCutInTwoIsTheSequence) {
  const Problem whole({}, 2, 9, 5, 4, false);
  whole.forward();
  const View x = whole.x;
  const Array first({2, 5, 5}, DType::f64), second({2, 4, 5}, DType::f64);
  cpu::conv({x.slice(1, 0, 5), {}, whole.weight, whole.bias, first}, {});
  cpu::conv({x.slice(1, 5, 9), x.slice(1, 2, 5), whole.weight, whole.bias, second}, {});
  EXPECT_TRUE(near(first, 0, [&](auto& at) { return whole.y({at[0], at[1], at[2]}); }));
  EXPECT_TRUE(near(second, 0, [&](auto& at) { return whole.y({at[0], at[1] + 5, at[2]}); }));
}

TEST(Conv, RepeatsHaveTheSameBits) {
  const Variant one{DType::f32, Layout::contiguous, {Device::cpu, 1}},
      two{one.dtype, one.layout, {Device::cpu, 2}};
  const Problem a(one, 2, 300, 70, 4), b(two, 2, 300, 70, 4);
  a.forward(), b.forward(), a.backward(), b.backward();
  EXPECT_TRUE(same_bits(a.y, b.y) && same_bits(a.dx, b.dx) && same_bits(a.dhalo, b.dhalo));
  EXPECT_TRUE(same_bits(a.dweight, b.dweight) && same_bits(a.dbias, b.dbias));
}

TEST(Conv, NoTokensMeanNoGradient) {
  for (const Variant& variant : cpu_variants())
    for (std::int64_t b : {0, 2}) {
      const Problem s(variant, b, 0, 5, 4), before(variant, b, 0, 5, 4);
      s.forward(), s.backward();
      EXPECT_TRUE(near(s.dhalo, [](auto&) { return 0; }));
      EXPECT_TRUE(same_bits(s.dweight, before.dweight) && same_bits(s.dbias, before.dbias));
    }
}

}  // namespace
}  // namespace transmamba
