#include "kernels/qkv_conv.h"

#include "kernels/cpu/conv.h"
#include "kernels/cpu/rope.h"
#include "twins.h"

namespace transmamba {
namespace {

using namespace transmamba::testing;  // NOLINT

/// The numbers that say what a problem is.
struct Sizes {
  std::int64_t b, t, h, n, p, w = 4;
  std::int64_t rotated = 0, position = 0;
  bool halo = true, k_rotated = true;

  std::int64_t channels() const { return h * (2 * n + p); }
  Shape activations() const { return {b, t, channels()}; }
  Shape before() const { return {b, w - 1, channels()}; }
  Shape keys() const { return {b, rotated, h, n}; }
  std::string text() const {
    return fmt::format("b {} t {} h {} n {} p {} w {} rotated {} position {} halo {} k_rotated {}", b, t, h,
                       n, p, w, rotated, position, halo, k_rotated);
  }
};

/// Inputs, outputs and gradients of one call: A is an Array, or a View of one of a Twin's arrays.
template <class A>
struct Tensors {
  A x, halo, weight, bias, y, k_rotated, dy, dk_rotated, dx, dhalo, dweight, dbias;

  void forward(const Sizes& s, const TestStream& stream) const {
    qkv_conv({.x = x,
              .halo = halo,
              .weight = weight,
              .bias = bias,
              .y = y,
              .k_rotated = k_rotated,
              .heads = s.h,
              .qk_width = s.n,
              .rotated = s.rotated,
              .position = s.position},
             stream);
  }
  void backward(const Sizes& s, const TestStream& stream) const {
    qkv_conv_backward({.dy = dy,
                       .dk_rotated = dk_rotated,
                       .x = x,
                       .halo = halo,
                       .weight = weight,
                       .bias = bias,
                       .dx = dx,
                       .dhalo = dhalo,
                       .dweight = dweight,
                       .dbias = dbias,
                       .heads = s.h,
                       .qk_width = s.n,
                       .rotated = s.rotated,
                       .position = s.position},
                      stream);
  }
};

Tensors<Array> arrays_of(const Variant& variant, const Sizes& s) {
  Arrays arrays(variant);
  Tensors<Array> a;
  a.x = arrays.normal(s.activations()), a.dy = arrays.normal(s.activations());
  a.weight = arrays.normal({s.channels(), s.w}, 0.5), a.bias = arrays.normal({s.channels()});
  a.y = arrays.poisoned(s.activations()), a.dx = arrays.poisoned(s.activations());
  a.dweight = arrays.normal({s.channels(), s.w}), a.dbias = arrays.normal({s.channels()});
  if (s.halo) a.halo = arrays.normal(s.before()), a.dhalo = arrays.poisoned(s.before());
  if (s.k_rotated) a.k_rotated = arrays.poisoned(s.keys()), a.dk_rotated = arrays.normal(s.keys());
  return a;
}

TEST(QkvConv, IsConvThenRope) {
  for (const Variant& variant : variants())
    for (bool k_rotated : {false, true})
      for (std::int64_t rotated : {0, 1, 17, 40}) {
        const Sizes s{2, 40, 2, 6, 5, 3, rotated, 1000, rotated != 17, k_rotated};
        const Tensors<Array> a = arrays_of(variant, s);
        a.forward(s, variant.stream);
        const Array u(s.activations(), variant.dtype), turned(s.activations(), variant.dtype);
        const Tensors<Array> r = arrays_of({variant.dtype, variant.layout, {}}, s);
        cpu::conv({r.x, r.halo, r.weight, r.bias, u}, {});
        turned.assign(u);
        for (std::int64_t part : {0, 1}) {
          const View heads =
              View(turned).slice(1, 0, rotated).slice(2, part * 12, part * 12 + 12).split(2, 6);
          cpu::rope({heads, heads, s.position}, {});
        }
        const auto in_y = [&](const std::vector<std::int64_t>& at) {
          return get(at[2] < 12 || !k_rotated ? turned : u, at);
        };
        EXPECT_TRUE(near(a.y, in_y)) << s.text();
        if (k_rotated) {
          EXPECT_TRUE(near(a.k_rotated, [&](auto& at) {
            return turned({at[0], at[1], 12 + at[2] * 6 + at[3]});
          })) << s.text();
        }
      }
}

TEST(QkvConv, GradientsAgreeWithFiniteDifferences) {
  for (Layout layout : {Layout::contiguous, Layout::strided})
    for (bool k_rotated : {false, true})
      for (std::int64_t rotated : {0, 2, 5}) {
        const Sizes s{2, 5, 2, 2, 1, rotated == 2 ? 4 : 2, rotated, 3, true, k_rotated};
        const Tensors<Array> a = arrays_of({DType::f64, layout, {}}, s);
        for (const Array& sum : {a.dweight, a.dbias}) fill_with(sum, 0);
        a.backward(s, {});
        const auto loss = [&] {
          a.forward(s, {});
          return dot(a.y, a.dy) + (k_rotated ? dot(a.k_rotated, a.dk_rotated) : 0);
        };
        EXPECT_TRUE(is_gradient(a.dx, a.x, loss)) << s.text();
        EXPECT_TRUE(is_gradient(a.dhalo, a.halo, loss)) << s.text();
        EXPECT_TRUE(is_gradient(a.dweight, a.weight, loss)) << s.text();
        EXPECT_TRUE(is_gradient(a.dbias, a.bias, loss)) << s.text();
      }
}

TEST(QkvConv, AgreesInEveryVariantAlsoItsGradients) {
  for (const Sizes& s :
       {Sizes{2, 70, 2, 6, 5, 4, 33, 7, true, true}, Sizes{1, 70, 3, 4, 8, 2, 70, 0, true, false},
        Sizes{2, 3, 1, 3, 2, 4, 0, 0, true, true},
        // Several runs of tokens and tiles of channels, wide and narrow windows.
        Sizes{2, 200, 4, 24, 27, 5, 120, 3, true, true}, Sizes{2, 9, 3, 2, 3, 6, 4, 0, false, true},
        Sizes{2, 9, 3, 2, 3, 1, 9, 0, true, true}}) {
    const Tensors<Array> reference = arrays_of({}, s);
    reference.forward(s, {}), reference.backward(s, {});
    for (const Variant& variant : variants()) {
      const Tensors<Array> a = arrays_of(variant, s);
      a.forward(s, variant.stream), a.backward(s, variant.stream);
      EXPECT_TRUE(near(a.y, [&](auto& at) { return get(reference.y, at); })) << s.text();
      if (s.k_rotated) {
        EXPECT_TRUE(near(a.k_rotated, [&](auto& at) { return get(reference.k_rotated, at); })) << s.text();
      }
      EXPECT_TRUE(near(a.dx, [&](auto& at) { return get(reference.dx, at); })) << s.text();
      if (s.halo) {
        EXPECT_TRUE(near(a.dhalo, [&](auto& at) { return get(reference.dhalo, at); })) << s.text();
      }
      EXPECT_TRUE(near(a.dweight, [&](auto& at) { return get(reference.dweight, at); })) << s.text();
      EXPECT_TRUE(near(a.dbias, [&](auto& at) { return get(reference.dbias, at); })) << s.text();
    }
  }
}

/// The same in bfloat16 on the GPU and in float64 on the CPU.
struct Twofold {
  Tensors<Twin> twins;
  Sizes sizes;

  Twofold(Layout layout, const Sizes& s, unsigned seed = 1) : sizes(s) {
    Twins make(layout, seed);
    Tensors<Twin>& a = twins;
    a.x = make.normal(s.activations()), a.dy = make.normal(s.activations());
    // Small parameters are contiguous in the model; elsewhere they are where the layout puts them.
    a.weight = make.normal_s({s.channels(), s.w}, 0.5), a.bias = make.normal_s({s.channels()});
    if (layout == Layout::padded) {
      Twins dense(Layout::contiguous, seed);
      a.weight = dense.normal_s({s.channels(), s.w}, 0.5);
    }
    a.y = make.poisoned(s.activations()), a.dx = make.poisoned(s.activations());
    a.dweight = make.normal_s({s.channels(), s.w}), a.dbias = make.normal_s({s.channels()});
    if (s.halo) a.halo = make.normal(s.before()), a.dhalo = make.poisoned(s.before());
    if (s.k_rotated) a.k_rotated = make.poisoned(s.keys()), a.dk_rotated = make.normal(s.keys());
  }
  Tensors<Array> side(Array Twin::*which) const {
    const Tensors<Twin>& a = twins;
    return {a.x.*which,  a.halo.*which,      a.weight.*which,  a.bias.*which,
            a.y.*which,  a.k_rotated.*which, a.dy.*which,      a.dk_rotated.*which,
            a.dx.*which, a.dhalo.*which,     a.dweight.*which, a.dbias.*which};
  }
  void run() const {
    side(&Twin::gpu).forward(sizes, Twins::on_gpu()), side(&Twin::gpu).backward(sizes, Twins::on_gpu());
    side(&Twin::cpu).forward(sizes, {}), side(&Twin::cpu).backward(sizes, {});
  }
};

void expect_agreement(Layout layout, const Sizes& s, unsigned seed = 1) {
  const Twofold both(layout, s, seed);
  both.run();
  const Tensors<Twin>& a = both.twins;
  EXPECT_TRUE(agree(a.y)) << s.text();
  EXPECT_TRUE(agree(a.dx)) << s.text();
  EXPECT_TRUE(agree(a.dweight)) << s.text();
  EXPECT_TRUE(agree(a.dbias)) << s.text();
  if (s.k_rotated) {
    EXPECT_TRUE(agree(a.k_rotated)) << s.text();
  }
  if (s.halo) {
    EXPECT_TRUE(agree(a.dhalo)) << s.text();
  }
}

TEST(QkvConv, InBfloat16AgreesWithTheCpu) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  for (Layout layout : layouts())
    for (const Sizes& s : {
             Sizes{2, 70, 2, 96, 96, 4, 41, 0, true, true},  // several runs, partial groups and chunks
             Sizes{1, 33, 3, 64, 128, 4, 33, 1000000, true, false},  // far positions
             Sizes{2, 5, 1, 8, 8, 4, 3, 5, false, true},
             Sizes{1, 1, 2, 16, 8, 4, 1, 0, true, true},
             Sizes{2, 2, 2, 16, 8, 4, 0, 0, true, true},
             Sizes{1, 35, 5, 128, 64, 4, 35, 3, false, false},
             Sizes{2, 20, 2, 6, 5, 4, 11, 0, true, true},    // widths that no vector fits
             Sizes{1, 20, 2, 16, 16, 2, 20, 0, true, true},  // other windows
             Sizes{1, 20, 2, 16, 16, 7, 9, 0, true, true},
             Sizes{2, 9, 3, 8, 8, 1, 9, 0, false, true},
             Sizes{1, 12, 1, 3, 4, 4, 0, 0, true, false},
         })
      expect_agreement(layout, s);
}

TEST(QkvConv, InBfloat16AgreesOnRandomShapes) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  std::mt19937 generator(7);
  const auto draw = [&](std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(generator);
  };
  for (unsigned seed = 0; seed < 40; ++seed) {
    Sizes s{draw(1, 3), draw(1, 150), draw(1, 3), 8 * draw(1, 6), 8 * draw(1, 6)};
    s.rotated = draw(0, s.t), s.position = draw(0, 100000), s.halo = draw(0, 1), s.k_rotated = draw(0, 1);
    expect_agreement(seed % 2 == 0 ? Layout::contiguous : Layout::padded, s, seed);
  }
}

TEST(QkvConv, InBfloat16ManyTokensAgreeAndRepeat) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  const Sizes s{1, 4500, 1, 8, 8, 4, 4300, 0, true, true};  // runs of more than one chunk
  expect_agreement(Layout::contiguous, s);
  const Twofold a(Layout::padded, s), b(Layout::padded, s);
  a.run(), b.run();
  const Tensors<Array> one = a.side(&Twin::gpu), two = b.side(&Twin::gpu);
  EXPECT_TRUE(same_bits(one.y, two.y) && same_bits(one.k_rotated, two.k_rotated));
  EXPECT_TRUE(same_bits(one.dx, two.dx) && same_bits(one.dhalo, two.dhalo));
  EXPECT_TRUE(same_bits(one.dweight, two.dweight) && same_bits(one.dbias, two.dbias));
}

TEST(QkvConv, RepeatsHaveTheSameBits) {
  for (const auto& [one, two] : repeats()) {
    const Sizes s{2, 100, 2, 8, 8, 4, 60, 0, true, true};
    const Tensors<Array> a = arrays_of(one, s), b = arrays_of(two, s);
    a.forward(s, one.stream), a.backward(s, one.stream);
    b.forward(s, two.stream), b.backward(s, two.stream);
    EXPECT_TRUE(same_bits(a.y, b.y) && same_bits(a.k_rotated, b.k_rotated) && same_bits(a.dx, b.dx));
    EXPECT_TRUE(same_bits(a.dhalo, b.dhalo) && same_bits(a.dweight, b.dweight) &&
                same_bits(a.dbias, b.dbias));
  }
}

TEST(QkvConv, NoTokensMeanNoGradient) {
  for (std::int64_t b : {0, 2}) {
    const Sizes s{b, 0, 2, 8, 8, 4, 0, 0, true, true};
    for (const Variant& variant : variants()) {
      const Tensors<Array> a = arrays_of(variant, s), before = arrays_of(variant, s);
      a.forward(s, variant.stream), a.backward(s, variant.stream);
      EXPECT_TRUE(near(a.dhalo, [](auto&) { return 0; }));
      EXPECT_TRUE(same_bits(a.dweight, before.dweight) && same_bits(a.dbias, before.dbias));
    }
    if (has_gpu()) expect_agreement(Layout::contiguous, s);
  }
}

TEST(QkvConv, BadArgumentsAreNamed) {
  const Sizes s{2, 5, 2, 4, 3, 4, 3};
  const auto fails = [&](const auto& change, const std::vector<std::string>& words) {
    return fails_naming(
        [&] {
          Tensors<Array> a = arrays_of({}, s);
          Sizes sizes = s;
          change(a, sizes);
          a.forward(sizes, {}), a.backward(sizes, {});
        },
        words);
  };
  const Array bad({2, 5, 3}, DType::f64);
  EXPECT_TRUE(fails([&](auto& a, auto&) { a.halo = bad; }, {"[qkv_conv]", "halo", "(2, 3, 22)"}));
  EXPECT_TRUE(fails([&](auto& a, auto&) { a.k_rotated = bad; }, {"[qkv_conv]", "k_rotated", "(2, 3, 2, 4)"}));
  EXPECT_TRUE(fails([&](auto& a, auto&) { a.y = bad; }, {"[qkv_conv]", "y:", "(2, 5, 22)"}));
  EXPECT_TRUE(fails([&](auto& a, auto&) { a.weight = a.bias; }, {"[qkv_conv]", "weight", "(c, w)"}));
  EXPECT_TRUE(fails([&](auto& a, auto&) { a.y = a.x; }, {"[qkv_conv]", "y: must not alias x"}));
  EXPECT_TRUE(fails([&](auto& a, auto&) { a.dx = a.dy; }, {"[qkv_conv_backward]", "dx: must not alias dy"}));
  EXPECT_TRUE(fails([&](auto&, auto& z) { z.rotated = 6; }, {"[qkv_conv]", "rotated", "6"}));
  EXPECT_TRUE(fails([&](auto&, auto& z) { z.n = 6; }, {"[qkv_conv]", "channels", "22"}));
}

}  // namespace
}  // namespace transmamba
