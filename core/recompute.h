// Memory for time: what backward passes compute again.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/check.h"

namespace transmamba {

/// What a backward pass computes again, bit for bit, rather than have it kept since the forward pass.
enum class Recompute : std::uint8_t {
  none,
  selective,  ///< what takes a pass over memory: norms' outputs, q, k and v after their convolution, SwiGLU's
  full,       ///< all of a layer but its input and its output projection
};

/// By the name that train.recompute gives it.
inline Recompute recompute_of(std::string_view name) {
  if (name == "none") return Recompute::none;
  if (name == "selective") return Recompute::selective;
  check(name == "full", "recompute", "expected none, selective or full, got {}", name);
  return Recompute::full;
}

}  // namespace transmamba
