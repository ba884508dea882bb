#include "parallel/comm/clock.h"

#include <algorithm>
#include <array>
#include <limits>

namespace transmamba {
namespace {

constexpr int kRounds = 40;
constexpr auto kPurpose = "clocks";

template <std::size_t n>
View view(std::array<double, n>& x) {
  return View(reinterpret_cast<std::byte*>(x.data()), DType::f64, {n});
}

}  // namespace

ClockOffset measure_clock_offset(Communicator& world, const std::function<double()>& now) {
  std::array<double, 1> word{};
  std::array<double, 3> result{now(), 0, 0};
  if (world.rank() > 0) {
    for (int i = 0; i < kRounds; ++i) {
      world.receive(kPurpose, view(word), 0, 0);
      word[0] = now();
      world.send(kPurpose, view(word), 0, 0);
    }
    world.receive(kPurpose, view(result), 0, 0);
    return {result[0], result[1], result[2]};
  }
  for (int rank = 1; rank < world.size(); ++rank) {
    std::array<double, 3> best{0, 0, std::numeric_limits<double>::infinity()};
    for (int i = 0; i < kRounds; ++i) {
      const double sent = now();
      world.send(kPurpose, view(word), rank, 0);
      world.receive(kPurpose, view(word), rank, 0);
      const double received = now();
      if (received - sent < best[2]) best = {word[0], (sent + received) / 2 - word[0], received - sent};
    }
    world.send(kPurpose, view(best), rank, 0);
  }
  return {result[0], 0, 0};
}

double on_first_clock(const ClockOffset& early, const ClockOffset& late, double time) {
  const double low = std::max(early.offset - early.round_trip / 2, late.offset - late.round_trip / 2),
               high = std::min(early.offset + early.round_trip / 2, late.offset + late.round_trip / 2);
  if (low <= high) return time + (low + high) / 2;
  const double apart = late.at - early.at;
  const double share = apart > 0 ? (time - early.at) / apart : 0;
  return time + early.offset + share * (late.offset - early.offset);
}

}  // namespace transmamba
