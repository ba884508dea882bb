// A rank may hold no tokens of a segment: every op then does nothing, and reads and writes nothing.
#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/gemm.h"
#include "kernels/qkv_conv.h"
#include "kernels/rms_norm.h"
#include "kernels/step_size.h"
#include "kernels/swiglu.h"
#include "testing.h"

namespace transmamba {
namespace {

using namespace transmamba::testing;  // NOLINT

/// Ways to have no tokens: no sequences or none of their tokens; nowhere, or as a slice of more.
struct Nothing {
  std::int64_t b, t;
  bool nowhere;
  Variant variant;
  Array memory = Array({3, 4, 8}, variant.dtype, Layout::contiguous, variant.stream.device);

  View operator()(std::initializer_list<std::int64_t> channels) const { return of(variant.dtype, channels); }
  View of(DType dtype, std::initializer_list<std::int64_t> channels = {}) const {
    Shape shape{b, t}, whole{3, 4};
    for (std::int64_t extent : channels) shape.append(extent), whole.append(extent);
    if (nowhere) return View(nullptr, dtype, shape);
    return View(memory->raw(), dtype, whole).slice(0, 1, 1 + b).slice(1, 2, 2 + t);
  }
};

void for_each_nothing(const std::function<void(const Nothing&)>& f) {
  for (const Variant& variant : variants())
    for (bool nowhere : {false, true})
      for (auto [b, t] : {std::pair{0, 2}, {2, 0}, {0, 0}}) f({b, t, nowhere, variant});
}

/// A parameter and its gradient, which must keep its bits.
struct Gradient {
  Array value, before;
  Gradient(const Nothing& none, const Shape& shape)
      : value(Arrays(none.variant).normal(shape)), before(Arrays(none.variant).normal(shape)) {}
  operator View() const { return value; }       // NOLINT: it is its array
  operator ConstView() const { return value; }  // NOLINT
  bool untouched() const { return same_bits(value, before); }
};

TEST(NoTokens, ProjectionsGiveNothingAndAddNothing) {
  for_each_nothing([](const Nothing& none) {
    const TestStream& stream = none.variant.stream;
    const Gradient weight(none, {5, 3});
    const View x = none({3}).merge(0), y = none({5}).merge(0);
    gemm({.a = x, .b = weight, .transpose_b = true, .c = y}, stream);
    gemm({.a = y, .b = weight, .c = x}, stream);
    gemm({.a = y, .transpose_a = true, .b = x, .c = weight, .beta = 1}, stream);
    EXPECT_TRUE(weight.untouched());
    gemm({.a = y, .transpose_a = true, .b = x, .c = weight}, stream);
    EXPECT_TRUE(near(weight.value, 0, [](auto&) { return 0; }));
  });
}

TEST(NoTokens, NormsDoNothing) {
  for_each_nothing([](const Nothing& none) {
    const TestStream& stream = none.variant.stream;
    const Gradient weight(none, {2, 3}), dweight(none, {2, 3});
    const View x = none({2, 3});
    for (const View& gate : {View(), x}) {
      rms_norm({.x = x, .gate = gate, .weight = weight, .y = x}, stream);
      rms_norm_backward(
          {.dy = x, .x = x, .gate = gate, .weight = weight, .dx = x, .dgate = gate, .dweight = dweight},
          stream);
    }
    EXPECT_TRUE(dweight.untouched());
  });
}

TEST(NoTokens, ConvolutionsPassNoGradientToTheHalo) {
  for_each_nothing([](const Nothing& none) {
    const TestStream& stream = none.variant.stream;
    const Gradient weight(none, {5, 4}), bias(none, {5}), dweight(none, {5, 4}), dbias(none, {5});
    const Gradient halo(none, {none.b, 3, 5}), dhalo(none, {none.b, 3, 5});
    const View x = none({5}), keys = none({1, 2});
    for (const std::int64_t rotated : {std::int64_t{0}, none.t}) {
      const View k = rotated == none.t ? keys : View();
      qkv_conv({.x = x,
                .halo = halo,
                .weight = weight,
                .bias = bias,
                .y = x,
                .k_rotated = k,
                .qk_width = 2,
                .rotated = rotated,
                .position = 7},
               stream);
      for (const bool first : {false, true})
        qkv_conv_backward({.dy = x,
                           .dk_rotated = k,
                           .x = x,
                           .halo = first ? View() : View(halo),
                           .weight = weight,
                           .bias = bias,
                           .dx = x,
                           .dhalo = first ? View() : View(dhalo),
                           .dweight = dweight,
                           .dbias = dbias,
                           .qk_width = 2,
                           .rotated = rotated,
                           .position = 7},
                          stream);
    }
    EXPECT_TRUE(dweight.untouched() && dbias.untouched() && halo.untouched());
    EXPECT_TRUE(near(dhalo.value, 0, [](auto&) { return 0; }));
  });
}

TEST(NoTokens, ActivationsDoNothing) {
  for_each_nothing([](const Nothing& none) {
    const TestStream& stream = none.variant.stream;
    const Gradient bias(none, {3}), dbias(none, {3});
    swiglu({none({6}), none({3})}, stream);
    swiglu_backward({none({3}), none({6}), none({6})}, stream);
    step_size({none({3}), bias, none({3})}, stream);
    step_size_backward({none({3}), none({3}), none({3}), dbias}, stream);
    EXPECT_TRUE(dbias.untouched());
  });
}

TEST(NoTokens, BothEndsOfTheModelDoNothing) {
  for_each_nothing([](const Nothing& none) {
    const TestStream& stream = none.variant.stream;
    const Gradient weight(none, {7, 3});
    const View tokens = none.of(DType::i32), number = none({});
    embedding({tokens, weight, none({3})}, stream);
    embedding_backward({none({3}), tokens, weight}, stream);
    const View partial = View(nullptr, none.variant.dtype, {2, none.b, none.t});
    cross_entropy_partial({none({7}), tokens, number, partial}, stream);
    cross_entropy_rescale({number, number, partial}, stream);
    cross_entropy_loss({number, partial, number, number}, stream);
    cross_entropy_backward({none({7}), tokens, number, 1, none({7})}, stream);
    EXPECT_TRUE(weight.untouched());
  });
}

TEST(NoTokens, QueriesThatAreNoneLeaveKeysWithoutGradient) {
  for_each_nothing([](const Nothing& none) {
    const TestStream& stream = none.variant.stream;
    const Gradient k(none, {none.b, 5, 2, 4}), v(none, {none.b, 5, 2, 3});
    const Gradient dk(none, {none.b, 5, 2, 4}), dv(none, {none.b, 5, 2, 3});
    const View q = none({2, 4}), o = none({2, 3});
    const View lse = View(nullptr, none.variant.dtype, {none.b, 2, none.t});
    attention({.q = q, .k = k, .v = v, .o = o, .lse = lse, .offset = 1}, stream);
    attention_backward(
        {.dout = o, .q = q, .k = k, .v = v, .o = o, .lse = lse, .dq = q, .dk = dk, .dv = dv, .offset = 1},
        stream);
    EXPECT_TRUE(near(dk.value, 0, [](auto&) { return 0; }));
    EXPECT_TRUE(near(dv.value, 0, [](auto&) { return 0; }));
    attention_backward({.dout = o, .q = q, .k = q, .v = o, .o = o, .lse = lse, .dq = q, .dk = q, .dv = o},
                       stream);
  });
}

TEST(NoTokens, UpkeepDoesNothing) {
  for_each_nothing([](const Nothing& none) {
    const TestStream& stream = none.variant.stream;
    const View x = none({3}), flat = x.merge(0).merge(0);
    fill({1, x}, stream), copy({x, x}, stream), add({x, x}, stream);
    adamw({.weight = flat, .grad = flat, .m = flat, .v = flat}, stream);
    const Array result = Arrays(none.variant).dense({1}, DType::f64);
    set(result, {0}, 5);
    sum({x, false, result}, stream), sum({x, true, result}, stream);
    EXPECT_EQ(result({0}), 5);
  });
}

}  // namespace
}  // namespace transmamba
