// The CPU's RoPE, of which its qkv_conv is made.
#include "kernels/cpu/rope.h"

#include "testing.h"

namespace transmamba {
namespace {

using namespace transmamba::testing;  // NOLINT

double rotated(const Array& x, std::vector<std::int64_t>& at, std::int64_t position, double theta,
               double sign) {
  const std::int64_t n = x->dim(3), half = n / 2, k = at[3] % half;
  const double angle = static_cast<double>(position + at[1]) *
                       std::pow(theta, -2.0 * static_cast<double>(k) / static_cast<double>(n)) * sign;
  const double u = x({at[0], at[1], at[2], k}), v = x({at[0], at[1], at[2], k + half});
  return at[3] < half ? u * std::cos(angle) - v * std::sin(angle) : v * std::cos(angle) + u * std::sin(angle);
}

TEST(Rope, AgreesWithTheDefinition) {
  for (const Variant& variant : cpu_variants())
    for (std::int64_t t : {1, 5, 32, 71})
      for (std::int64_t position : {0, 3, 1000})
        for (bool inverse : {false, true}) {
          Arrays arrays(variant);
          const Array x = arrays.normal({2, t, 3, 10}), y = arrays.poisoned({2, t, 3, 10});
          cpu::rope({x, y, position, 500.0, inverse}, variant.stream);
          EXPECT_TRUE(near(y, [&](auto& at) { return rotated(x, at, position, 500.0, inverse ? -1 : 1); }))
              << "t " << t << " position " << position << " inverse " << inverse;
        }
}

TEST(Rope, InverseTurnsBackInPlace) {
  for (const Variant& variant : cpu_variants()) {
    Arrays arrays(variant);
    const Array x = arrays.normal({2, 40, 2, 16}), y = arrays.poisoned({2, 40, 2, 16});
    y.assign(x);
    cpu::rope({y, y, 123, 10000, false}, variant.stream);
    EXPECT_FALSE(near(y, [&](auto& at) { return get(x, at); }));
    cpu::rope({y, y, 123, 10000, true}, variant.stream);
    EXPECT_TRUE(near(y, [&](auto& at) { return get(x, at); }));
  }
}

TEST(Rope, InverseIsTheGradient) {
  Arrays arrays({});
  const Array x = arrays.normal({1, 3, 2, 6}), y = arrays.poisoned({1, 3, 2, 6});
  const Array dy = arrays.normal({1, 3, 2, 6}), dx = arrays.poisoned({1, 3, 2, 6});
  cpu::rope({dy, dx, 7, 10000, true}, {});
  EXPECT_TRUE(is_gradient(dx, x, [&] {
    cpu::rope({x, y, 7, 10000, false}, {});
    return dot(y, dy);
  }));
}

TEST(Rope, RepeatsHaveTheSameBits) {
  Arrays arrays({DType::f32, Layout::contiguous, {}});
  const Array x = arrays.normal({2, 300, 4, 32}), a = arrays.poisoned(x->shape()),
              b = arrays.poisoned(x->shape());
  cpu::rope({x, a}, {Device::cpu, 1});
  cpu::rope({x, b}, {Device::cpu, 2});
  EXPECT_TRUE(same_bits(a, b));
}

TEST(Rope, NoTokensWork) {
  for (const Variant& variant : cpu_variants()) {
    const Array none = Arrays(variant).poisoned({2, 0, 3, 8});
    cpu::rope({none, none}, variant.stream);
  }
}

}  // namespace
}  // namespace transmamba
