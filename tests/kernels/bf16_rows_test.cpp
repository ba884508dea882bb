// Norms, SwiGLU and step sizes in bfloat16.
#include "kernels/rms_norm.h"
#include "kernels/step_size.h"
#include "kernels/swiglu.h"
#include "twins.h"

namespace transmamba {
namespace {

using namespace transmamba::testing;  // NOLINT

constexpr double kEps = 1e-5;

struct Norm {
  Twin x, gate, weight, y, dy, dresidual, dx, dgate, dweight;

  Norm(Layout layout, const Shape& s, bool gated, bool residual) {
    Twins twins(layout);
    x = twins.normal(s), dy = twins.normal(s), weight = twins.uniform_s({s[2], s[3]}, 0.8, 1.2);
    y = twins.poisoned(s), dx = twins.poisoned(s), dweight = twins.normal_s({s[2], s[3]});
    if (gated) gate = twins.normal(s), dgate = twins.poisoned(s);
    if (residual) dresidual = twins.normal(s);
  }
  void forward() const {
    rms_norm({x.gpu, gate.gpu, weight.gpu, y.gpu, kEps}, Twins::on_gpu());
    rms_norm({x.cpu, gate.cpu, weight.cpu, y.cpu, kEps}, {});
  }
  void backward() const {
    rms_norm_backward(
        {dy.gpu, x.gpu, gate.gpu, weight.gpu, dresidual.gpu, dx.gpu, dgate.gpu, dweight.gpu, kEps},
        Twins::on_gpu());
    rms_norm_backward(
        {dy.cpu, x.cpu, gate.cpu, weight.cpu, dresidual.cpu, dx.cpu, dgate.cpu, dweight.cpu, kEps}, {});
  }
};

TEST(RmsNormInBfloat16, AgreesWithTheCpu) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  for (Layout layout : layouts())
    for (bool gated : {false, true})
      for (bool residual : {false, true})
        for (const Shape& shape :
             {Shape{2, 5, 3, 37}, Shape{2, 31, 5, 96}, Shape{1, 70, 40, 64}, Shape{2, 9, 16, 128},
              Shape{1, 3, 2, 200}, Shape{1, 40, 1, 504}, Shape{1, 5, 1, 1024}, Shape{2, 21, 1, 1536},
              Shape{1, 9, 2, 2048}, Shape{1, 3, 1, 2056}, Shape{3, 1, 2, 1}, Shape{1, 900, 3, 8}}) {
          const Norm s(layout, shape, gated, residual);
          s.forward(), s.backward();
          EXPECT_TRUE(agree(s.y)) << to_string(shape);
          EXPECT_TRUE(agree(s.dx)) << to_string(shape);
          EXPECT_TRUE(agree(s.dweight)) << to_string(shape);
          if (gated) {
            EXPECT_TRUE(agree(s.dgate)) << to_string(shape);
          }
        }
}

TEST(RmsNormInBfloat16, MayWriteOverWhatItReadsAndRepeats) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  for (Layout layout : layouts())
    for (const Shape& shape : {Shape{2, 40, 4, 96}, Shape{1, 600, 1, 264}}) {
      const Norm a(layout, shape, true, true), b(layout, shape, true, true), c(layout, shape, true, true);
      const TestStream gpu = Twins::on_gpu();
      a.forward(), a.backward();
      rms_norm({b.x.gpu, b.gate.gpu, b.weight.gpu, b.x.gpu, kEps}, gpu);
      EXPECT_TRUE(same_bits(a.y.gpu, b.x.gpu));
      rms_norm_backward({b.dy.gpu, a.x.gpu, b.gate.gpu, b.weight.gpu, b.dresidual.gpu, b.dy.gpu, b.dgate.gpu,
                         b.dweight.gpu, kEps},
                        gpu);
      rms_norm_backward({c.dy.gpu, c.x.gpu, c.gate.gpu, c.weight.gpu, c.dresidual.gpu, c.dresidual.gpu,
                         c.dgate.gpu, c.dweight.gpu, kEps},
                        gpu);
      EXPECT_TRUE(same_bits(a.dx.gpu, b.dy.gpu) && same_bits(a.dx.gpu, c.dresidual.gpu));
      EXPECT_TRUE(same_bits(a.dweight.gpu, b.dweight.gpu) && same_bits(a.dweight.gpu, c.dweight.gpu));
      EXPECT_TRUE(same_bits(a.dgate.gpu, b.dgate.gpu) && same_bits(a.dgate.gpu, c.dgate.gpu));
    }
}

TEST(SwigluInBfloat16, AgreesWithTheCpuAndMayWriteOverItsInput) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  for (Layout layout : layouts())
    for (const Shape& shape :
         {Shape{2, 5, 37}, Shape{2, 17, 64}, Shape{1, 3, 4096}, Shape{1, 2, 2056}, Shape{1, 50, 8}}) {
      Twins twins(layout);
      const TestStream gpu = Twins::on_gpu();
      const Shape packed{shape[0], shape[1], 2 * shape[2]};
      const Twin gate_up = twins.normal(packed, 2), y = twins.poisoned(shape), dy = twins.normal(shape),
                 d = twins.poisoned(packed);
      swiglu({gate_up.gpu, y.gpu}, gpu), swiglu({gate_up.cpu, y.cpu}, {});
      EXPECT_TRUE(agree(y)) << to_string(shape);
      swiglu_backward({dy.gpu, gate_up.gpu, d.gpu}, gpu), swiglu_backward({dy.cpu, gate_up.cpu, d.cpu}, {});
      EXPECT_TRUE(agree(d)) << to_string(shape);
      swiglu_backward({dy.gpu, gate_up.gpu, gate_up.gpu}, gpu);
      EXPECT_TRUE(same_bits(d.gpu, gate_up.gpu));
    }
}

TEST(StepSizeInBfloat16, AgreesWithTheCpu) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  for (Layout layout : layouts())
    for (const Shape& shape : {Shape{2, 5, 3}, Shape{2, 700, 16}, Shape{1, 20, 300}}) {
      Twins twins(layout);
      const TestStream gpu = Twins::on_gpu();
      const Twin raw = twins.normal(shape, 3), bias = twins.normal_s({shape[2]}),
                 dt = twins.poisoned_s(shape), ddt = twins.normal_s(shape), draw = twins.poisoned(shape),
                 dbias = twins.normal_s({shape[2]});
      step_size({raw.gpu, bias.gpu, dt.gpu}, gpu), step_size({raw.cpu, bias.cpu, dt.cpu}, {});
      EXPECT_TRUE(agree(dt)) << to_string(shape);
      step_size_backward({ddt.gpu, dt.gpu, draw.gpu, dbias.gpu}, gpu);
      step_size_backward({ddt.cpu, dt.cpu, draw.cpu, dbias.cpu}, {});
      EXPECT_TRUE(agree(draw)) << to_string(shape);
      EXPECT_TRUE(agree(dbias)) << to_string(shape);
    }
}

TEST(RowsInBfloat16, NoTokensWork) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  for (const Shape& shape : {Shape{2, 0, 2, 96}, Shape{0, 3, 2, 96}}) {
    const Norm s(Layout::contiguous, shape, true, true), before(Layout::contiguous, shape, true, true);
    s.forward(), s.backward();
    EXPECT_TRUE(same_bits(s.dweight.gpu, before.dweight.gpu));
    Twins twins(Layout::contiguous);
    const Twin gate_up = twins.normal({shape[0], shape[1], 16}), y = twins.poisoned({shape[0], shape[1], 8});
    swiglu({gate_up.gpu, y.gpu}, Twins::on_gpu());
  }
}

}  // namespace
}  // namespace transmamba
