#include "core/random.h"

#include <cmath>
#include <numbers>

namespace transmamba {
namespace {

std::uint32_t low(std::uint64_t x) { return static_cast<std::uint32_t>(x); }
std::uint32_t high(std::uint64_t x) { return static_cast<std::uint32_t>(x >> 32); }

std::array<std::uint32_t, 4> draw(std::uint64_t seed, std::uint64_t stream, std::uint64_t index) {
  return philox4x32({low(index), high(index), low(stream), high(stream)}, {low(seed), high(seed)});
}

/// The 53 top bits of two words, as an integer: exact in a double.
double bits53(std::uint32_t a, std::uint32_t b) {
  return static_cast<double>((std::uint64_t{a} << 32 | b) >> 11);
}

constexpr double kStep = 0x1p-53;

}  // namespace

std::array<std::uint32_t, 4> philox4x32(const std::array<std::uint32_t, 4>& counter,
                                        const std::array<std::uint32_t, 2>& key) {
  auto [c0, c1, c2, c3] = counter;
  auto [k0, k1] = key;
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t left = std::uint64_t{0xD2511F53} * c0;
    const std::uint64_t right = std::uint64_t{0xCD9E8D57} * c2;
    c0 = high(right) ^ c1 ^ k0;
    c1 = low(right);
    c2 = high(left) ^ c3 ^ k1;
    c3 = low(left);
    k0 += 0x9E3779B9;  // the golden ratio
    k1 += 0xBB67AE85;  // sqrt(3) - 1
  }
  return {c0, c1, c2, c3};
}

double uniform(std::uint64_t seed, std::uint64_t stream, std::uint64_t index) {
  const auto words = draw(seed, stream, index);
  return bits53(words[0], words[1]) * kStep;
}

double normal(std::uint64_t seed, std::uint64_t stream, std::uint64_t index) {
  const auto words = draw(seed, stream, index);
  const double radius = (bits53(words[0], words[1]) + 1) * kStep;  // in (0, 1]: its logarithm is finite
  const double turn = bits53(words[2], words[3]) * kStep;
  return std::sqrt(-2 * std::log(radius)) * std::cos(2 * std::numbers::pi * turn);
}

}  // namespace transmamba
