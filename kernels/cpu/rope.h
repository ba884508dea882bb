// Rotary position embedding (Su et al., 2021), half-split pairing: the second half of kernels/qkv_conv.h,
// which checks what comes here.
#pragma once

#include "kernels/dispatch.h"

namespace transmamba::cpu {

/// Token i of x (b, t, h, n), n even, is at absolute position `position + i`; dimension k is paired with k +
/// n/2 and turned by the angle (position + i) theta^(-2k/n). `inverse` turns back, which is also the
/// gradient. y may alias x.
struct Rope {
  ConstView x;
  View y;
  std::int64_t position = 0;
  double theta = 10000;
  bool inverse = false;
};
void rope(const Rope& arguments, const Stream& stream);

}  // namespace transmamba::cpu
