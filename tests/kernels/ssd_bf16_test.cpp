// The SSD in bfloat16 on a GPU, against the CPU's in float64 on the same rounded numbers.
#include "kernels/ssd.h"
#include "testing.h"

namespace transmamba {
namespace {

using namespace transmamba::testing;  // NOLINT

/// Sums of products whose factors are rounded once more on their way (masked products, states): errors of
/// single elements are of the size of all, so norms are compared. Each of two or three roundings errs by at
/// most 2^-9.
constexpr double kAllowed = 6e-3;

::testing::AssertionResult close(const char* name, const ConstView& actual, const ConstView& expected) {
  double difference = 0, size = 0, worst = 0, largest = 0;
  for_each_index(expected.shape(), [&](auto& at) {
    const double e = get(expected, at), d = get(actual, at) - e;
    difference += d * d, size += e * e;
    worst = std::isnan(d) ? d : std::max(worst, std::abs(d)), largest = std::max(largest, std::abs(e));
  });
  const double error = std::sqrt(difference) / (std::sqrt(size) + 1e-30);
  if ((largest < 1e-30 && worst < 1e-30) || (error <= kAllowed && worst <= 10 * kAllowed * largest))
    return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << name << ": relative error " << error << ", worst " << worst << " of " << largest;
}

/// Whether da_log, sums over tokens that may cancel, is right to twice `kAllowed` of the sizes of its terms,
/// those of the head where they are largest: dt A da = dt (ddt - k . H v), which may cancel too. Twice,
/// because the rounding of <H, S> has one sign over a sequence.
::testing::AssertionResult close_sum(const char* name, const ConstView& actual, const ConstView& expected,
                                     const ConstView& dt, const ConstView& ddt) {
  double largest = 0;
  for (std::int64_t h = 0; h < expected.dim(0); ++h) {
    double size = 0;
    for (std::int64_t b = 0; b < dt.dim(0); ++b)
      for (std::int64_t t = 0; t < dt.dim(1); ++t) size += std::abs(get(dt, {b, t, h}) * get(ddt, {b, t, h}));
    largest = std::max(largest, size);
  }
  for (std::int64_t h = 0; h < expected.dim(0); ++h) {
    const double error = std::abs(get(actual, {h}) - get(expected, {h}));
    if (!(error <= 2 * kAllowed * (largest + 1)))
      return ::testing::AssertionFailure()
             << name << " of head " << h << ": error " << error << " of terms of " << largest;
  }
  return ::testing::AssertionSuccess();
}

struct Case {
  std::int64_t b, t, h, n, p;
  bool has_states, has_skip;
  double step;  // largest dt
};

std::string to_text(const Case& c) {
  return fmt::format("b {} t {} h {} n {} p {} states {} skip {} dt {}", c.b, c.t, c.h, c.n, c.p,
                     c.has_states, c.has_skip, c.step);
}
void PrintTo(const Case& c, std::ostream* out) { *out << to_text(c); }  // a test's name, else made of bytes

/// One side's tensors: q, k, v as windows on one packed tensor whose tokens have neighbours, and all the
/// rest.
struct Side {
  DType type, statistics;
  Array packed, dpacked, dy, y, dt, ddt, a_log, da_log, d_skip, dd_skip, state_in, state_out, dstate_in,
      dstate_out, log_decay;
  TestStream stream;

  Side(const Case& c, DType dtype, const TestStream& on)
      : type(dtype), statistics(statistics_of(dtype)), stream(on) {
    const auto array = [&](const Shape& shape, DType t) {
      return Array(shape, t, Layout::contiguous, on.device);
    };
    const Shape whole{c.b, c.t + 2, c.h * (2 * c.n + c.p)}, state{c.b, c.h, c.n, c.p};
    packed = array(whole, type), dpacked = array(whole, type);
    dy = array({c.b, c.t, c.h, c.p}, type), y = array({c.b, c.t, c.h, c.p}, type);
    dt = array({c.b, c.t, c.h}, statistics), ddt = array({c.b, c.t, c.h}, statistics);
    a_log = array({c.h}, statistics), da_log = array({c.h}, statistics),
    log_decay = array({c.b, c.h}, statistics);
    d_skip = array({c.h}, statistics), dd_skip = array({c.h}, statistics);
    for (Array* x : {&state_in, &state_out, &dstate_in, &dstate_out}) *x = array(state, statistics);
  }
  View window(const Array& from, const Case& c, int part) const {
    const std::int64_t begin = part * c.h * c.n, width = part == 2 ? c.p : c.n;
    return View(from).slice(1, 1, 1 + c.t).slice(2, begin, begin + c.h * width).split(2, width);
  }
  void draw(const Case& c, unsigned seed) const {
    Arrays arrays({DType::f64, Layout::contiguous, {}}, seed);
    const auto rounded = [&](const Array& x, const Array& from) {  // both sides get what bfloat16 holds
      for_each_index(x->shape(),
                     [&](auto& at) { set(x, at, to_float(to_bfloat16(static_cast<float>(get(from, at))))); });
    };
    rounded(packed, arrays.normal(packed->shape())), rounded(dpacked, arrays.normal(packed->shape()));
    rounded(dy, arrays.normal(dy->shape()));
    dt.assign(arrays.uniform(dt->shape(), 1e-3, c.step)), ddt.assign(arrays.normal(dt->shape()));
    a_log.assign(arrays.uniform(a_log->shape(), 0, 2.7)), da_log.assign(arrays.normal(a_log->shape()));
    d_skip.assign(arrays.normal(a_log->shape())), dd_skip.assign(arrays.normal(a_log->shape()));
    state_in.assign(arrays.normal(state_in->shape())), dstate_out.assign(arrays.normal(state_in->shape()));
    log_decay.assign(arrays.uniform(log_decay->shape(), -1, 0));
  }
  void scan(const Case& c) const {
    ssd_scan({.q = window(packed, c, 0),
              .k = window(packed, c, 1),
              .v = window(packed, c, 2),
              .dt = dt,
              .a_log = a_log,
              .d_skip = c.has_skip ? ConstView(d_skip) : ConstView(),
              .state_in = c.has_states ? ConstView(state_in) : ConstView(),
              .y = y,
              .state_out = c.has_states ? View(state_out) : View()},
             stream);
  }
  void scan_backward(const Case& c) const {
    ssd_scan_backward({.dy = dy,
                       .dstate_out = c.has_states ? ConstView(dstate_out) : ConstView(),
                       .q = window(packed, c, 0),
                       .k = window(packed, c, 1),
                       .v = window(packed, c, 2),
                       .dt = dt,
                       .a_log = a_log,
                       .d_skip = c.has_skip ? ConstView(d_skip) : ConstView(),
                       .state_in = c.has_states ? ConstView(state_in) : ConstView(),
                       .dq = window(dpacked, c, 0),
                       .dk = window(dpacked, c, 1),
                       .dv = window(dpacked, c, 2),
                       .ddt = ddt,
                       .da_log = da_log,
                       .dd_skip = c.has_skip ? View(dd_skip) : View(),
                       .dstate_in = c.has_states ? View(dstate_in) : View()},
                      stream);
  }
  void summary(const Case& c) const {
    ssd_summary({.k = window(packed, c, 1),
                 .v = window(packed, c, 2),
                 .dt = dt,
                 .a_log = a_log,
                 .state_in = c.has_states ? ConstView(state_in) : ConstView(),
                 .state_out = state_out,
                 .log_decay = log_decay},
                stream);
  }
  void summary_backward(const Case& c) const {
    ssd_summary_backward({.dstate_out = dstate_out,
                          .dlog_decay = c.has_skip ? ConstView(log_decay) : ConstView(),
                          .k = window(packed, c, 1),
                          .v = window(packed, c, 2),
                          .dt = dt,
                          .a_log = a_log,
                          .state_in = c.has_states ? ConstView(state_in) : ConstView(),
                          .dk = window(dpacked, c, 1),
                          .dv = window(dpacked, c, 2),
                          .ddt = ddt,
                          .da_log = da_log,
                          .dstate_in = dstate_in},
                         stream);
  }
  void entry_gradient(const Case& c) const {
    ssd_entry_gradient({.dy = dy,
                        .q = window(packed, c, 0),
                        .dt = dt,
                        .a_log = a_log,
                        .log_decay = c.has_states ? ConstView(log_decay) : ConstView(),
                        .dstate_in = dstate_in},
                       stream);
  }
};

/// Every width, lengths around the chunks' and pieces' ends, weak and strong decay.
std::vector<Case> cases() {
  std::vector<Case> all;
  std::mt19937 random(7);
  const auto pick = [&](auto... choices) {
    const std::vector<std::int64_t> from{choices...};
    return from[random() % from.size()];
  };
  for (const std::int64_t n : {64, 96, 128})
    for (const std::int64_t p : {64, 96, 128})
      for (int i = 0; i < 4; ++i) {
        const std::int64_t t =
            i < 2 ? pick(1, 63, 64, 65, 127) : static_cast<std::int64_t>(1 + random() % 900);
        all.push_back(
            {pick(1, 2), t, pick(1, 2, 3), n, p, random() % 2 == 0, random() % 2 == 0, i == 0 ? 1.5 : 0.05});
      }
  for (const auto& [n, p] : {std::pair{64, 128}, {128, 64}, {96, 128}, {128, 96}, {128, 128}})
    all.push_back({1, 400, 88, n, p, true, true, 0.05});  // 3 pieces of up to 3 chunks
  all.push_back({1, 5000, 1, 96, 96, true, true, 0.02});
  for (const bool has_states : {false, true}) all.push_back({2, 0, 3, 96, 64, has_states, true, 0.05});
  all.push_back({2, 1500, 16, 64, 64, true, true, 0.05});  // pieces of several chunks
  all.push_back({2, 2100, 16, 96, 96, false, true, 0.3});
  return all;
}

class SsdBf16Cases : public ::testing::TestWithParam<Case> {};

TEST_P(SsdBf16Cases, AgreesWithFloat64) {
  // The CPU has no bfloat16: tests/kernels/ssd_test.cpp checks what this compares with.
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  const Case& c = GetParam();
  SCOPED_TRACE(to_text(c));
  const Side gpu(c, DType::bf16, {Device::cuda}), cpu(c, DType::f64, {Device::cpu, 2});
  for (const Side* side : {&gpu, &cpu}) {
    side->draw(c, 3);
    side->scan(c);
    side->scan_backward(c);
  }
  EXPECT_TRUE(close("y", gpu.y, cpu.y));
  EXPECT_TRUE(close("dq", gpu.window(gpu.dpacked, c, 0), cpu.window(cpu.dpacked, c, 0)));
  EXPECT_TRUE(close("dk", gpu.window(gpu.dpacked, c, 1), cpu.window(cpu.dpacked, c, 1)));
  EXPECT_TRUE(close("dv", gpu.window(gpu.dpacked, c, 2), cpu.window(cpu.dpacked, c, 2)));
  EXPECT_TRUE(close("ddt", gpu.ddt, cpu.ddt));
  EXPECT_TRUE(close_sum("da_log", gpu.da_log, cpu.da_log, cpu.dt, cpu.ddt));
  if (c.has_skip) {
    EXPECT_TRUE(close("dd_skip", gpu.dd_skip, cpu.dd_skip));
  }
  if (c.has_states) {
    EXPECT_TRUE(close("state_out", gpu.state_out, cpu.state_out));
  }
  if (c.has_states) {
    EXPECT_TRUE(close("dstate_in", gpu.dstate_in, cpu.dstate_in));
  }
  // Tokens beside the window are nobody's.
  for (const std::int64_t token : {std::int64_t{0}, c.t + 1})
    EXPECT_TRUE(close("neighbours", View(gpu.dpacked).slice(1, token, token + 1),
                      View(cpu.dpacked).slice(1, token, token + 1)));

  for (const Side* side : {&gpu, &cpu}) {
    side->draw(c, 3);
    side->entry_gradient(c);
  }
  EXPECT_TRUE(close("entry gradient", gpu.dstate_in, cpu.dstate_in));

  for (const Side* side : {&gpu, &cpu}) {
    side->draw(c, 4);
    side->summary(c);
    side->summary_backward(c);
  }
  EXPECT_TRUE(close("summary", gpu.state_out, cpu.state_out));
  EXPECT_TRUE(close("log_decay", gpu.log_decay, cpu.log_decay));
  EXPECT_TRUE(close("summary's dk", gpu.window(gpu.dpacked, c, 1), cpu.window(cpu.dpacked, c, 1)));
  EXPECT_TRUE(close("summary's dv", gpu.window(gpu.dpacked, c, 2), cpu.window(cpu.dpacked, c, 2)));
  EXPECT_TRUE(close("summary's ddt", gpu.ddt, cpu.ddt));
  EXPECT_TRUE(close_sum("summary's da_log", gpu.da_log, cpu.da_log, cpu.dt, cpu.ddt));
  EXPECT_TRUE(close("summary's dstate_in", gpu.dstate_in, cpu.dstate_in));
}
INSTANTIATE_TEST_SUITE_P(Widths, SsdBf16Cases, ::testing::ValuesIn(cases()));

TEST(SsdBf16, RepeatsToTheBit) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  for (const Case& c :
       {Case{2, 700, 3, 96, 64, true, true, 0.1}, Case{1, 900, 40, 128, 128, true, true, 0.1}}) {
    std::vector<Side> sides;
    for (int i = 0; i < 2; ++i) {
      sides.emplace_back(c, DType::bf16, TestStream{Device::cuda});
      const Side& side = sides.back();
      side.draw(c, 5);
      side.scan(c), side.scan_backward(c), side.summary(c), side.summary_backward(c);
    }
    for (const auto member : {&Side::dpacked, &Side::y, &Side::ddt, &Side::da_log, &Side::dd_skip,
                              &Side::state_out, &Side::dstate_in})
      EXPECT_TRUE(same_bits(sides[0].*member, sides[1].*member)) << to_text(c);
  }
}

TEST(SsdBf16, AStateMayPassInPlace) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  const Case c{1, 500, 2, 64, 64, true, true, 0.05};
  const Side apart(c, DType::bf16, {Device::cuda}), in_place(c, DType::bf16, {Device::cuda});
  apart.draw(c, 6), in_place.draw(c, 6);
  apart.scan(c);
  ssd_scan({.q = in_place.window(in_place.packed, c, 0),
            .k = in_place.window(in_place.packed, c, 1),
            .v = in_place.window(in_place.packed, c, 2),
            .dt = in_place.dt,
            .a_log = in_place.a_log,
            .d_skip = in_place.d_skip,
            .state_in = in_place.state_in,
            .y = in_place.y,
            .state_out = in_place.state_in},
           in_place.stream);
  EXPECT_TRUE(same_bits(apart.y, in_place.y));
  EXPECT_TRUE(same_bits(apart.state_out, in_place.state_in));
}

TEST(SsdBf16, WidthsWithoutAKernelAndUnalignedRowsAreNamed) {
  if (!has_gpu()) GTEST_SKIP() << kNoGpu;
  const Case narrow{1, 5, 1, 32, 64, false, false, 0.1};
  const Side side(narrow, DType::bf16, {Device::cuda});
  EXPECT_TRUE(
      fails_naming([&] { side.scan(narrow); }, {"[ssd_scan]", "qk_head_dim", "64, 96 and 128", "32"}));
  const Case c{1, 5, 1, 64, 64, false, false, 0.1};
  const Side good(c, DType::bf16, {Device::cuda});
  const Array odd({1, 5, 1, 65}, DType::bf16, Layout::contiguous, Device::cuda);
  EXPECT_TRUE(fails_naming(
      [&] {
        ssd_summary({.k = View(odd).slice(3, 0, 64),
                     .v = good.window(good.packed, c, 2),
                     .dt = good.dt,
                     .a_log = good.a_log,
                     .state_out = good.state_out},
                    good.stream);
      },
      {"[ssd_summary]", "k:", "16 bytes"}));
}

}  // namespace
}  // namespace transmamba
