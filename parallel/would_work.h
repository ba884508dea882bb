// Numbers that would do, for the messages of errors.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string>

namespace transmamba {

/// The multiples of `unit` next to `value`, at least one unit: "508 and 512".
inline std::string nearest_multiples(std::int64_t value, std::int64_t unit) {
  const std::int64_t below = value / unit * unit;
  return below == 0 ? fmt::format("{}", unit) : fmt::format("{} and {}", below, below + unit);
}

}  // namespace transmamba
