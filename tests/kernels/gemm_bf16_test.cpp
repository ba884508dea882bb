// Products of bfloat16 on the GPU against float64 on the CPU.
#include "aligned.h"
#include "kernels/device.h"
#include "kernels/gemm.h"

namespace transmamba {
namespace {

using namespace transmamba::testing;  // NOLINT

constexpr TestStream kGpu{Device::cuda};

struct Case {
  std::int64_t m, n, k;
  bool ta = false, tb = false;
  double beta = 0;
  DType c = DType::bf16;
  bool addend = false;
};

void check_product(const Case& s) {
  const Aligned a(s.ta ? Shape{s.k, s.m} : Shape{s.m, s.k}, DType::bf16);
  const Aligned b(s.tb ? Shape{s.n, s.k} : Shape{s.k, s.n}, DType::bf16);
  const Aligned c({s.m, s.n}, s.c), d({s.m, s.n}, s.c);
  a.fill_normal(1, 1 / std::sqrt(static_cast<double>(s.k + 1))), b.fill_normal(2);
  if (s.beta != 0) d.fill_normal(3);
  const Array exact_a = a.exact(), exact_b = b.exact(), exact_c = d.exact();
  if (s.beta != 0 && !s.addend) c.assign(d);
  Gemm call{
      .a = exact_a, .transpose_a = s.ta, .b = exact_b, .transpose_b = s.tb, .c = exact_c, .beta = s.beta};
  gemm(call, {});
  call.a = a, call.b = b, call.c = c;
  if (s.addend) call.addend = d;
  gemm(call, TestStream::Argument(kGpu));
  EXPECT_TRUE(c.holds(exact_c)) << "m " << s.m << " n " << s.n << " k " << s.k << " transpose " << s.ta
                                << s.tb << " beta " << s.beta << " c " << to_string(s.c) << " addend "
                                << s.addend;
}

TEST(GemmBf16, AgreesWithFloat64) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  for (bool ta : {false, true})
    for (bool tb : {false, true})
      for (DType c : {DType::bf16, DType::f32})
        for (double beta : {0.0, 1.0, -0.5})
          for (bool addend : {false, true}) check_product({136, 72, 200, ta, tb, beta, c, addend});
}

TEST(GemmBf16, AnyShapeWorks) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  for (const Case& s :
       {Case{1, 64, 96, false, true}, Case{64, 1, 96, true, false, 1}, Case{64, 96, 1},
        Case{1, 1, 1, true, true, 1, DType::f32}, Case{17, 9, 23, false, true, 0, DType::f32, true},
        Case{33, 57, 301, true, false, 1, DType::bf16, true}, Case{7, 2000, 65, true, true}})
    check_product(s);
}

TEST(GemmBf16, NoTermsAndNoElementsWork) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  for (DType c : {DType::bf16, DType::f32})
    for (bool addend : {false, true})
      for (double beta : {0.0, 2.0})
        for (const Case& s :
             {Case{5, 7, 0, false, true, beta, c, addend}, Case{0, 7, 5, true, true, beta, c, addend},
              Case{5, 0, 7, false, false, beta, c, addend}, Case{0, 0, 0, false, false, beta, c}})
          check_product(s);
}

TEST(GemmBf16, RowsOfAnyAlignmentAreRightOrAnError) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  const Variant odd{DType::bf16, Layout::strided, kGpu};
  Arrays arrays(odd);
  const Array a = arrays.normal({40, 24}, 0.2), b = arrays.normal({32, 24}), c = arrays.poisoned({40, 32});
  const Array expected({40, 32}, DType::f64), exact_a({40, 24}, DType::f64), exact_b({32, 24}, DType::f64);
  exact_a.assign(a), exact_b.assign(b);
  gemm({.a = exact_a, .b = exact_b, .transpose_b = true, .c = expected}, {});
  try {
    gemm({.a = a, .b = b, .transpose_b = true, .c = c}, TestStream::Argument(kGpu));
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("[gemm] cuBLASLt has no algorithm for a (40, 24)"),
              std::string::npos);
    return;
  }
  EXPECT_TRUE(near(c, [&](auto& at) { return expected(at); }));
}

/// Of more than 2^20 results, so that the first call of each kind tries several algorithms.
TEST(GemmBf16, LargeProductsHaveTheSameBitsAfterTheSearch) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  const std::int64_t m = 1040, n = 1048, k = 512;
  for (DType type : {DType::bf16, DType::f32})
    for (const auto& [ta, tb] : {std::pair{false, true}, {false, false}, {true, false}})  // a linear layer's
      for (double beta : {0.0, 1.0}) {
        const Aligned a(ta ? Shape{k, m} : Shape{m, k}, DType::bf16),
            b(tb ? Shape{n, k} : Shape{k, n}, DType::bf16), before({m, n}, type);
        a.fill_normal(1, 0.05), b.fill_normal(2), before.fill_normal(3);
        const Array exact_a = a.exact(), exact_b = b.exact(), expected = before.exact();
        Gemm call{
            .a = exact_a, .transpose_a = ta, .b = exact_b, .transpose_b = tb, .c = expected, .beta = beta};
        gemm(call, {Device::cpu, 2});
        call.a = a, call.b = b;
        const Aligned searching({m, n}, type), second({m, n}, type), third({m, n}, type);
        for (const Aligned* c : {&searching, &second, &third}) {
          c->assign(before);
          call.c = *c;
          gemm(call, TestStream::Argument(kGpu));
        }
        EXPECT_TRUE(searching.holds(expected));
        EXPECT_TRUE(searching.same_bits(second) && second.same_bits(third))
            << "transpose " << ta << tb << " beta " << beta << " c " << to_string(type);
      }
}

/// A capture takes cuBLASLt's first suggestion, and the call after it searches.
TEST(GemmBf16, AFirstCallThatIsCapturedHasTheBitsOfTheNext) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  const std::int64_t m = 1056, n = 1064, k = 768;  // of no other test
  for (DType type : {DType::bf16, DType::f32}) {
    const Aligned a({m, k}, DType::bf16), b({n, k}, DType::bf16), captured({m, n}, type), next({m, n}, type);
    a.fill_normal(1, 0.05), b.fill_normal(2);
    const Stream stream = gpu::create_stream();
    const auto product = [&](const View& c) { gemm({.a = a, .b = b, .transpose_b = true, .c = c}, stream); };
    const auto graph = gpu::capture(stream, [&] { product(captured); });
    for (int i = 0; i < 2; ++i) graph->launch(stream);
    gpu::synchronize(stream);
    product(next);
    gpu::synchronize(stream);
    EXPECT_TRUE(captured.same_bits(next));
    gpu::destroy_stream(stream);
  }
}

}  // namespace
}  // namespace transmamba
