// What must not be slow, as ratios within one run.
#include <algorithm>
#include <chrono>

#include "kernels/adamw.h"
#include "kernels/ssd.h"
#include "testing.h"

namespace transmamba {
namespace {

using namespace transmamba::testing;  // NOLINT

template <class F>
double best_seconds(F&& f) {
  double best = 1e9;
  for (int i = 0; i < 5; ++i) {
    const auto start = std::chrono::steady_clock::now();
    f();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

TEST(Timing, StrongDecayIsAsFastAsWeakDecay) {  // 10 to 60 times slower where decays become subnormal numbers
  Arrays arrays({DType::f32, Layout::contiguous, {}});
  const Shape heads{1, 1024, 2, 32};
  const Array q = arrays.normal(heads), k = arrays.normal(heads), v = arrays.normal(heads),
              y = arrays.poisoned(heads);
  const Array dt = arrays.uniform({1, 1024, 2}, 0.05, 0.1), a_log = arrays.uniform({2}, 0, 0);
  const auto seconds = [&](double rate) {
    for (std::int64_t h : {0, 1}) set(a_log, {h}, std::log(rate));
    return best_seconds([&] { ssd_scan({.q = q, .k = k, .v = v, .dt = dt, .a_log = a_log, .y = y}, {}); });
  };
  const double weak = seconds(0.1);
  for (double rate : {4.0, 16.0, 80.0}) EXPECT_LT(seconds(rate), 3 * weak) << "A = -" << rate;
}

TEST(Timing, FadingMomentsAreAsFastAsOthers) {
  Arrays arrays({DType::f32, Layout::contiguous, {}});
  const Shape shape{1 << 18};
  const Array weight = arrays.normal(shape), zero = arrays.uniform(shape, 0, 0), m = arrays.normal(shape),
              v = arrays.uniform(shape, 0, 1);
  const auto step = [&] {
    adamw({.weight = weight, .grad = zero, .m = m, .v = v, .lr = 1e-3, .weight_decay = 0.1, .step = 5}, {});
  };
  const double normal = best_seconds(step);
  for_each_index(shape, [&](auto& at) { set(m, at, 1e-38), set(v, at, 1e-38); });
  EXPECT_LT(best_seconds(step), 3 * normal);
}

}  // namespace
}  // namespace transmamba
