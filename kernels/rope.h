// Rotary position embedding (Su et al., 2021), half-split pairing.
#pragma once

#include "kernels/dispatch.h"

namespace transmamba {

/// Token i of x is at absolute position `position + i`; dimension k is paired with k + n/2 and turned by
/// the angle (position + i) * theta^(-2k/n). `inverse` turns back, which is also the gradient.
/// x, y (b, t, h, n): T, n even. y may alias x.
struct Rope {
  ConstView x;
  View y;
  std::int64_t position = 0;
  double theta = 10000;
  bool inverse = false;
};
TRANSMAMBA_KERNEL(rope, Rope);

}  // namespace transmamba
