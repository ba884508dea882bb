// Attention of bfloat16 on the GPU against float64 on the CPU.
#include "aligned.h"
#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "key_parts.h"

namespace transmamba {
namespace {

using namespace transmamba::testing;  // NOLINT

constexpr TestStream kGpu{Device::cuda};

struct Sizes {
  std::int64_t b, tq, tk, h, n, p, offset;
};

/// Arguments on the GPU, and the same numbers with their results in float64.
struct Problem {
  Sizes z;
  Aligned q, k, v, dout, o, lse, dq, dk, dv;
  Array exact_q, exact_k, exact_v, exact_dout, exact_o, exact_lse, exact_dq, exact_dk, exact_dv;

  explicit Problem(const Sizes& s, double score = 1, double value = 1)
      : z(s),
        q({s.b, s.tq, s.h, s.n}, DType::bf16),
        k({s.b, s.tk, s.h, s.n}, DType::bf16),
        v({s.b, s.tk, s.h, s.p}, DType::bf16),
        dout({s.b, s.tq, s.h, s.p}, DType::bf16),
        o(dout->shape(), DType::bf16),
        lse({s.b, s.h, s.tq}, DType::f32),
        dq(q->shape(), DType::bf16),
        dk(k->shape(), DType::bf16),
        dv(v->shape(), DType::bf16) {
    q.fill_normal(1, score), k.fill_normal(2), v.fill_normal(3, value);
    dout.fill_normal(4, 1 / std::sqrt(static_cast<double>(s.p)));  // as large as its products with v
    exact_q = q.exact(), exact_k = k.exact(), exact_v = v.exact(), exact_dout = dout.exact();
    exact_o = o.exact(), exact_lse = Array(lse->shape(), DType::f64);
    exact_dq = dq.exact(), exact_dk = dk.exact(), exact_dv = dv.exact();
    attention({exact_q, exact_k, exact_v, exact_o, exact_lse, z.offset}, {});
    attention_backward(
        {exact_dout, exact_q, exact_k, exact_v, exact_o, exact_lse, exact_dq, exact_dk, exact_dv, z.offset},
        {});
  }
  void forward() const { attention({q, k, v, o, lse, z.offset}, TestStream::Argument(kGpu)); }
  void backward(bool accumulate = false, bool deterministic = true) const {
    TestStream::Argument stream = kGpu;
    stream.deterministic = deterministic;
    attention_backward({dout, q, k, v, o, lse, dq, dk, dv, z.offset, accumulate}, stream);
  }
  void forward_over(const Keys& keys, bool continues) const {
    const auto of = [&](const View& x) { return x.slice(1, keys.first, keys.second); };
    attention({q, of(k), of(v), o, lse, offset_to(keys, z.offset), continues}, TestStream::Argument(kGpu));
  }
  void backward_over(const Keys& keys, bool accumulate_dq, bool deterministic) const {
    const auto of = [&](const View& x) { return x.slice(1, keys.first, keys.second); };
    TestStream::Argument stream = kGpu;
    stream.deterministic = deterministic;
    attention_backward({.dout = dout,
                        .q = q,
                        .k = of(k),
                        .v = of(v),
                        .o = o,
                        .lse = lse,
                        .dq = dq,
                        .dk = of(dk),
                        .dv = of(dv),
                        .offset = offset_to(keys, z.offset),
                        .accumulate_dq = accumulate_dq},
                       stream);
  }
  void check_all() const {
    const auto name = [&] {
      return fmt::format("b {} tq {} tk {} h {} n {} p {} offset {}", z.b, z.tq, z.tk, z.h, z.n, z.p,
                         z.offset);
    };
    EXPECT_TRUE(o.holds(exact_o)) << name();
    EXPECT_TRUE(lse.holds(exact_lse)) << name();
    EXPECT_TRUE(dq.holds(exact_dq)) << name();
    EXPECT_TRUE(dk.holds(exact_dk)) << name();
    EXPECT_TRUE(dv.holds(exact_dv)) << name();
  }
};

TEST(AttentionBf16, AgreesWithFloat64) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  for (const Sizes& z :
       {Sizes{2, 300, 300, 3, 96, 96, 0}, Sizes{1, 128, 128, 2, 64, 64, 0}, Sizes{1, 1, 1, 2, 96, 64, 0},
        Sizes{2, 1, 77, 2, 64, 128, 76}, Sizes{1, 2, 2, 1, 128, 128, 0},
        Sizes{1, 5, 3, 2, 96, 96, 0},       // the last queries see all keys
        Sizes{2, 40, 50, 2, 128, 96, 60},   // all queries see all keys
        Sizes{1, 70, 200, 2, 96, 128, 33},  // the last keys are seen by none
        Sizes{1, 200, 131, 2, 64, 96, 31},
        Sizes{2, 3, 1030, 64, 64, 64, 1027}}) {  // more heads than are taken at a time
    const Problem s(z);
    s.forward(), s.backward(), s.check_all();
  }
}

TEST(AttentionBf16, AgreesWithFloat64AtRandomSizes) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  std::mt19937 generator(7);
  const auto from = [&](std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(generator);
  };
  constexpr std::int64_t kWidths[] = {64, 96, 128};
  for (int i = 0; i < 12; ++i) {
    const std::int64_t tq = from(1, 700), offset = from(0, 1) * from(0, 400);
    const std::int64_t tk = std::max<std::int64_t>(1, tq + offset + from(-1, 1) * from(0, 60));
    const Problem s({from(1, 2), tq, tk, from(1, 3), kWidths[from(0, 2)], kWidths[from(0, 2)], offset});
    s.forward(), s.backward(), s.check_all();
  }
}

TEST(AttentionBf16, GradientsAddedInAnyOrderAgreeWithFloat64) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  for (const Sizes& z : {Sizes{2, 300, 300, 3, 96, 96, 0}, Sizes{1, 257, 257, 2, 64, 64, 0},
                         Sizes{1, 640, 900, 2, 128, 128, 260}, Sizes{1, 200, 131, 2, 64, 96, 31}}) {
    const Problem s(z);
    s.forward(), s.backward(/*accumulate=*/false, /*deterministic=*/false), s.check_all();
    for (const Aligned* sum : {&s.dk, &s.dv}) fill_with(*sum, 0);
    s.backward(/*accumulate=*/true, /*deterministic=*/false), s.check_all();
  }
}

/// Of the length that models are trained at, by every query and key of a head.
TEST(AttentionBf16, AgreesWithFloat64AtLength8192) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  const Problem s({1, 8192, 8192, 1, 96, 96, 0});
  s.forward();
  for (bool deterministic : {true, false}) {
    for (const Aligned* gradient : {&s.dq, &s.dk, &s.dv}) fill_with(*gradient, NAN);
    s.backward(/*accumulate=*/false, deterministic), s.check_all();
  }
}

TEST(AttentionBf16, HasTheSameBitsAgain) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  for (const Sizes& z : {Sizes{2, 513, 513, 2, 96, 96, 0}, Sizes{1, 640, 900, 2, 128, 64, 260}}) {
    const Problem one(z), two(z);
    for (const Problem* s : {&one, &two}) s->forward(), s->backward();
    EXPECT_TRUE(one.o.same_bits(two.o) && one.lse.same_bits(two.lse) && one.dq.same_bits(two.dq) &&
                one.dk.same_bits(two.dk) && one.dv.same_bits(two.dv));
  }
}

TEST(AttentionBf16, QueriesInSegmentsAddUpToTheGradientsOfTheirKeys) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  const Problem s({2, 150, 200, 2, 96, 96, 40});
  s.forward();
  bool first = true;
  for (const auto& [begin, end] : {std::pair<std::int64_t, std::int64_t>{50, 150}, {0, 50}, {50, 50}}) {
    const auto of = [&, begin = begin, end = end](const View& x, int dim) {
      return x.slice(dim, begin, end);
    };
    attention_backward({of(s.dout, 1), of(s.q, 1), s.k, s.v, of(s.o, 1), of(s.lse, 2), of(s.dq, 1), s.dk,
                        s.dv, s.z.offset + begin, !first},
                       TestStream::Argument(kGpu));
    first = false;
  }
  s.check_all();
}

TEST(AttentionBf16, KeysInPartsInAnyOrderAgreeWithFloat64) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  struct Parts {
    Sizes z;
    std::vector<std::int64_t> cuts;
  };
  for (const auto& [z, cuts] :
       {Parts{{2, 130, 430, 3, 96, 96, 300}, {0, 300, 430}},
        Parts{{2, 130, 430, 3, 96, 64, 300}, {0, 170, 300, 430}},
        Parts{{1, 33, 70, 1, 64, 128, 37}, {0, 37, 70}},      // a contiguous lse
        Parts{{1, 9, 80, 2, 128, 96, 40}, {0, 40, 80}},       // the last keys are seen by none
        Parts{{2, 40, 100, 2, 64, 64, 120}, {0, 60, 100}},    // all keys are seen by all
        Parts{{1, 50, 91, 2, 96, 96, 40}, {0, 1, 91}},        // one key, and several queries
        Parts{{2, 3, 1030, 64, 64, 64, 1027}, {0, 3, 1030}},  // more heads than are taken at a time
        Parts{{2, 1, 3, 2, 96, 64, 2}, {0, 1, 2, 3}}}) {      // one query, and one key a call
    const Problem s(z);
    for (bool deterministic : {true, false})
      for (const std::vector<Keys>& parts : orders_of_parts(cuts)) {
        for (const Aligned* out : {&s.o, &s.lse, &s.dq, &s.dk, &s.dv}) fill_with(*out, NAN);
        for (const Keys& keys : parts) s.forward_over(keys, /*continues=*/keys != parts.front());
        for (const Keys& keys : parts)
          s.backward_over(keys, /*accumulate_dq=*/keys != parts.front(), deterministic);
        s.check_all();
      }
  }
}

TEST(AttentionBf16, SegmentsThatAttendToTheirOwnKeysFirstAgreeWithFloat64) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  const Problem s({2, 400, 400, 3, 96, 96, 0});
  const Aligned earlier_dk(s.k->shape(), DType::bf16), earlier_dv(s.v->shape(), DType::bf16);
  for (bool deterministic : {true, false}) {
    for (const Aligned* out : {&s.o, &s.lse, &s.dq, &s.dk, &s.dv}) fill_with(*out, NAN);
    for (const Aligned* sum : {&earlier_dk, &earlier_dv}) fill_with(*sum, 0);
    TestStream::Argument stream = kGpu;
    stream.deterministic = deterministic;
    attend_by_segments({s.q, s.k, s.v, s.o, s.lse}, {s.dout, s.q, s.k, s.v, s.o, s.lse, s.dq, s.dk, s.dv},
                       earlier_dk, earlier_dv, {0, 130, 190, 400}, stream);
    add({.x = earlier_dk, .y = s.dk}, stream), add({.x = earlier_dv, .y = s.dv}, stream);
    s.check_all();
  }
}

TEST(AttentionBf16, PartsOfLargeScoresDoNotOverflow) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  // Of small values: o is hardly an average of them, and is rounded more often than in one call.
  const Problem s({2, 130, 430, 3, 96, 96, 300}, /*score=*/40, /*value=*/0.25);
  double largest = 0;
  for_each_index(s.exact_lse->shape(), [&](auto& at) { largest = std::max(largest, s.exact_lse(at)); });
  EXPECT_GT(largest, std::log(static_cast<double>(std::numeric_limits<float>::max())));
  for (const std::vector<Keys>& parts : orders_of_parts({0, 170, 300, 430})) {
    for (const Keys& keys : parts) s.forward_over(keys, /*continues=*/keys != parts.front());
    EXPECT_TRUE(s.o.holds(s.exact_o));
    EXPECT_TRUE(s.lse.holds(s.exact_lse));
  }
}

TEST(AttentionBf16, SlicesOfOneProjectionNeedNoCopies) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  const std::int64_t b = 2, t = 190, h = 2, n = 96;
  const Problem s({b, t, t, h, n, n, 0});
  const Aligned qkv({b, t, 3 * h, n}, DType::bf16), dqkv({b, t, 3 * h, n}, DType::bf16);
  const auto of = [&](const View& x, std::int64_t i) { return x.slice(2, i * h, (i + 1) * h); };
  for (const auto& [i, from] : {std::pair<int, View>{0, s.q}, {1, s.k}, {2, s.v}})
    for_each_index(from.shape(), [&, i = i, from = from](auto& at) { set(of(qkv, i), at, get(from, at)); });
  attention({of(qkv, 0), of(qkv, 1), of(qkv, 2), s.o, s.lse}, TestStream::Argument(kGpu));
  attention_backward(
      {s.dout, of(qkv, 0), of(qkv, 1), of(qkv, 2), s.o, s.lse, of(dqkv, 0), of(dqkv, 1), of(dqkv, 2)},
      TestStream::Argument(kGpu));
  s.dq.assign(of(dqkv, 0)), s.dk.assign(of(dqkv, 1)), s.dv.assign(of(dqkv, 2));
  s.check_all();
}

TEST(AttentionBf16, NoQueriesIsNoWork) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  for (std::int64_t tk : {0, 5}) {
    const Problem s({2, 0, tk, 2, 64, 64, 0});
    s.forward(), s.backward();
    s.check_all();
    for (const Aligned* sum : {&s.dk, &s.dv}) fill_with(*sum, 7);
    s.backward(true);
    for (const Aligned* sum : {&s.dk, &s.dv})
      for_each_index((*sum)->shape(), [&](auto& at) { EXPECT_EQ(get(*sum, at), 7); });
  }
}

TEST(AttentionBf16, WidthsAndAlignmentsThatDoNotWorkAreNamed) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  const Problem wide({1, 4, 4, 1, 136, 64, 0}), odd({1, 4, 4, 1, 64, 36, 0}), good({1, 4, 4, 1, 64, 64, 0});
  EXPECT_TRUE(fails_naming([&] { wide.forward(); }, {"[attention] head widths:", "n 136", "p 64", "128"}));
  EXPECT_TRUE(fails_naming([&] { odd.backward(); }, {"[attention_backward] head widths:", "p 36"}));
  const Variant strided{DType::bf16, Layout::strided, kGpu};
  const Array q = Arrays(strided).normal({1, 4, 1, 64});
  EXPECT_TRUE(fails_naming(
      [&] {
        attention({q, good.k, good.v, good.o, good.lse}, TestStream::Argument(kGpu));
      },
      {"[attention] q:", "16 bytes"}));
}

}  // namespace
}  // namespace transmamba
