#include "kernels/gemm.h"

#include <tuple>

#include "testing.h"

namespace transmamba {
namespace {

using namespace transmamba::testing;  // NOLINT

struct Case {
  std::int64_t m, n, k;
  bool ta, tb;
  double beta;
};

void check_product(const Case& s, const Variant& variant) {
  Arrays arrays(variant);
  const double scale = 1 / std::sqrt(static_cast<double>(s.k + 1));
  const Array a = arrays.normal(s.ta ? Shape{s.k, s.m} : Shape{s.m, s.k}, scale);
  const Array b = arrays.normal(s.tb ? Shape{s.n, s.k} : Shape{s.k, s.n});
  const Array c = s.beta == 0 ? arrays.poisoned({s.m, s.n}) : arrays.normal({s.m, s.n});
  Array before({s.m, s.n}, DType::f64);
  before.assign(c);
  gemm({.a = a, .transpose_a = s.ta, .b = b, .transpose_b = s.tb, .c = c, .beta = s.beta}, variant.stream);
  EXPECT_TRUE(near(c,
                   [&](auto& at) {
                     double sum = s.beta == 0 ? 0 : s.beta * get(before, at);
                     for (std::int64_t l = 0; l < s.k; ++l)
                       sum += (s.ta ? a({l, at[0]}) : a({at[0], l})) * (s.tb ? b({at[1], l}) : b({l, at[1]}));
                     return sum;
                   }))
      << "m " << s.m << " n " << s.n << " k " << s.k << " transpose " << s.ta << s.tb << " beta " << s.beta;
}

TEST(Gemm, AgreesWithTheDefinition) {
  for (const Variant& variant : variants())
    for (bool ta : {false, true})
      for (bool tb : {false, true})
        for (double beta : {0.0, 1.0, -0.5}) check_product({17, 9, 23, ta, tb, beta}, variant);
}

TEST(Gemm, SingleRowsColumnsAndTermsWork) {
  for (const Variant& variant : variants())
    for (const Case& s : {Case{1, 5, 7, false, true, 0}, Case{5, 1, 7, true, false, 1},
                          Case{5, 7, 1, false, false, 0}, Case{1, 1, 1, true, true, 1}})
      check_product(s, variant);
}

TEST(Gemm, EmptyMatricesWork) {
  for (const Variant& variant : variants())
    for (const Case& s :
         {Case{0, 5, 7, false, true, 0}, Case{5, 0, 7, false, false, 0}, Case{5, 7, 0, false, false, 0},
          Case{5, 7, 0, true, true, 2}, Case{0, 0, 0, false, false, 0}})
      check_product(s, variant);
}

TEST(Gemm, TilesMeetWithoutSeams) {
  // Large enough to be cut in several tiles along both sides, with ragged last ones.
  const std::int64_t m = 700, n = 530, k = 257;
  const auto product = [&](const Variant& variant) {
    Arrays arrays(variant);
    const Array a = arrays.normal({k, m}), b = arrays.normal({n, k}), c = arrays.poisoned({m, n});
    gemm({.a = a, .transpose_a = true, .b = b, .transpose_b = true, .c = c}, variant.stream);
    return std::tuple(a, b, c);
  };
  for (const auto& [one, two] : repeats(DType::f32, Layout::strided)) {
    const auto [a, b, c] = product(one);
    EXPECT_TRUE(same_bits(c, std::get<2>(product(two))));
    EXPECT_TRUE(same_bits(c, std::get<2>(product({DType::f32, Layout::strided, {two.stream.device, 3}}))));
    for (std::int64_t i = 0; i < m; i += 9)
      for (std::int64_t j = 0; j < n; j += 7) {
        double sum = 0;
        for (std::int64_t l = 0; l < k; ++l) sum += a({l, i}) * b({j, l});
        ASSERT_NEAR(c({i, j}), sum, 100 * tolerance(DType::f32)) << i << " " << j;  // 257 terms of size 1
      }
    EXPECT_TRUE(c.neighbours_untouched());
  }
}

TEST(Gemm, Float32IsNotRoundedToFewerDigits) {
  for (const TestStream& stream : streams()) {
    Arrays arrays({DType::f32, Layout::contiguous, stream});
    const Array a = arrays.dense({64, 64}), b = arrays.dense({64, 64}), c = arrays.dense({64, 64});
    for_each_index(a->shape(), [&](auto& at) {
      set(a, at, 1 + std::ldexp(1, -20)), set(b, at, at[0] == at[1]);  // TF32 keeps 10 bits
    });
    gemm({.a = a, .b = b, .c = c}, stream);
    EXPECT_TRUE(near(c, 0, [](auto&) { return 1 + std::ldexp(1, -20); }));
  }
}

TEST(Gemm, BadArgumentsAreNamed) {
  Arrays arrays({});
  const Array a = arrays.normal({3, 4}), b = arrays.normal({5, 4}), c = arrays.poisoned({3, 5});
  EXPECT_TRUE(fails_naming([&] { gemm({.a = a, .b = b, .c = c}, {}); }, {"[gemm]", "b:", "(5, 4)"}));
  EXPECT_TRUE(fails_naming(
      [&] {
        gemm({.a = a, .b = b, .transpose_b = true, .c = Array({3, 4}, DType::f64)}, {});
      },
      {"[gemm]", "c:", "(3, 5)", "(3, 4)"}));
  EXPECT_TRUE(fails_naming(
      [&] {
        gemm({.a = Array({3, 4}, DType::f32), .b = b, .transpose_b = true, .c = c}, {});
      },
      {"[gemm]", "b:", "float32", "float64"}));
  EXPECT_TRUE(
      fails_naming([&] { gemm({.a = {}, .b = b, .transpose_b = true, .c = c}, {}); }, {"[gemm]", "a:"}));
}

}  // namespace
}  // namespace transmamba
