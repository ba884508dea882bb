// Kernels on whole tensors where bfloat16 takes part: AdamW's rounded weights, fill, copy, add, sum.
#include "kernels/adamw.h"
#include "kernels/elementwise.h"
#include "twins.h"

namespace transmamba {
namespace {

using namespace transmamba::testing;  // NOLINT

/// One step on the GPU and the same on the CPU.
struct Step {
  Twin weight, grad, m, v;
  Array rounded, squared_norm;
  Step(Layout layout, std::int64_t length, double norm) {
    Twins twins(layout);
    const Shape shape{length};
    weight = twins.normal_s(shape), grad = twins.normal_s(shape), m = twins.normal_s(shape);
    v = twins.uniform_s(shape, 0.1, 2), rounded = twins.poisoned(shape).gpu;
    squared_norm = Array({1}, DType::f64, Layout::contiguous, Device::cuda);
    set(squared_norm, {0}, norm * norm);
  }
  void run(Array Twin::*on, const Array& copy, const TestStream& stream) const {
    adamw({.weight = weight.*on,
           .grad = grad.*on,
           .m = m.*on,
           .v = v.*on,
           .rounded = copy,
           .squared_norm = squared_norm,
           .clip_grad = 0.5,
           .grad_scale = 0.25,
           .lr = 0.01,
           .weight_decay = 0.1,
           .step = 3},
          stream);
  }
};

TEST(AdamWOnAGpu, ClipsAndRoundsTheWeights) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  for (Layout layout : {Layout::contiguous, Layout::strided})  // the second begins anywhere
    for (std::int64_t length : {1, 3, 4, 5000, 20001})
      for (double norm : {0.1, 7.0}) {
        const Step s(layout, length, norm);
        s.run(&Twin::gpu, s.rounded, Twins::on_gpu()), s.run(&Twin::cpu, {}, {});
        EXPECT_TRUE(agree(s.weight) && agree(s.m) && agree(s.v));
        EXPECT_TRUE(near(s.rounded, 0, [&](auto& at) {
          return to_float(to_bfloat16(static_cast<float>(get(s.weight.gpu, at))));
        }));
      }
}

TEST(AdamWOnAGpu, ANormThatIsNotFiniteChangesNothing) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  for (double norm : {double(NAN), double(INFINITY)}) {
    const Step s(Layout::contiguous, 100, norm), before(Layout::contiguous, 100, norm);
    s.run(&Twin::gpu, s.rounded, Twins::on_gpu());
    EXPECT_TRUE(same_bits(s.weight.gpu, before.weight.gpu) && same_bits(s.m.gpu, before.m.gpu));
    EXPECT_TRUE(same_bits(s.v.gpu, before.v.gpu) && same_bits(s.rounded, before.rounded));
  }
}

const std::vector<Shape>& shapes() {
  static const std::vector<Shape> all{{},        {7},     {3, 1},    {2, 3, 4, 5}, {1, 2, 1, 3, 1},
                                      {2, 0, 3}, {40001}, {3, 9000}, {5000, 3},    {2, 5, 16}};
  return all;
}

TEST(ElementwiseOnAGpu, FillAndAddWorkOnEveryShapeAndLayout) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  const TestStream gpu = Twins::on_gpu();
  for (Layout layout : layouts())
    for (const Shape& shape : shapes()) {
      Twins twins(layout);
      const Twin x = twins.normal(shape), y = twins.poisoned(shape);
      fill({1.5, y.gpu}, gpu);
      EXPECT_TRUE(near(y.gpu, 0, [](auto&) { return 1.5; })) << to_string(shape);
      add({x.gpu, y.gpu}, gpu);
      EXPECT_TRUE(near(y.gpu, [&](auto& at) { return 1.5 + get(x.cpu, at); })) << to_string(shape);
    }
}

TEST(ElementwiseOnAGpu, CopyRoundsAsTheCpuDoes) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  const TestStream gpu = Twins::on_gpu();
  for (DType from : {DType::f64, DType::f32, DType::bf16})
    for (DType to : {DType::f64, DType::f32, DType::bf16})
      for (Layout layout : layouts())
        for (const Shape& shape : shapes()) {
          Arrays arrays({from, layout, gpu});
          const Array x = arrays.normal(shape);
          const Array there(shape, to, layout, Device::cuda), back(shape, to);
          copy({x, there}, gpu), copy({x, back}, {});
          EXPECT_TRUE(near(there, 0, [&](auto& at) { return get(back, at); })) << to_string(shape);
          const Array dense(shape, to, Layout::contiguous, Device::cuda);
          copy({x, dense}, gpu);
          EXPECT_TRUE(near(dense, 0, [&](auto& at) { return get(back, at); })) << to_string(shape);
        }
}

TEST(SumOnAGpu, AgreesWithTheDefinition) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  const TestStream gpu = Twins::on_gpu();
  for (DType dtype : {DType::f32, DType::bf16})
    for (std::int64_t length : {1, 7, 8191, 8192, 8193, 100001})
      for (std::int64_t begin : {0, 1})  // the second begins nowhere in particular
        for (bool squares : {false, true}) {
          Arrays arrays({dtype, Layout::contiguous, gpu});
          const Array x = arrays.normal({length + begin});
          const Array result({1}, DType::f64, Layout::contiguous, Device::cuda);
          double expected = 10;
          for (std::int64_t i = begin; i < length + begin; ++i)
            expected += squares ? std::pow(x({i}), 2) : x({i});
          set(result, {0}, 10);
          sum({View(x).slice(0, begin, begin + length), squares, result}, gpu);
          EXPECT_TRUE(near(result, [&](auto&) { return expected; })) << length << " from " << begin;
        }
}

}  // namespace
}  // namespace transmamba
