// SwiGLU activation of the MLP (Shazeer, 2020) on the packed product of gate and up projections.
#pragma once

#include "kernels/dispatch.h"

namespace transmamba {

/// y = SiLU(gate) * up, where gate_up (b, t, 2f) holds gate in [0, f) and up in [f, 2f) of its last dim. y
/// (b, t, f). All T.
struct Swiglu {
  ConstView gate_up;
  View y;
};
TRANSMAMBA_KERNEL(swiglu, Swiglu);

/// dgate_up (b, t, 2f) is overwritten and may alias gate_up.
struct SwigluBackward {
  ConstView dy;
  ConstView gate_up;
  View dgate_up;
};
TRANSMAMBA_KERNEL(swiglu_backward, SwigluBackward);

}  // namespace transmamba
