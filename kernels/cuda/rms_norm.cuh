// Shared by rms_norm.cu (any type and layout) and rms_norm_rows.cu (fast).
#pragma once

#include "kernels/rms_norm.h"

namespace transmamba::cuda {

/// For bfloat16 rows of at most 2048 numbers that begin at multiples of 16 bytes; false where these cannot.
bool rms_norm_rows(const RmsNorm& a, const Stream& stream);
bool rms_norm_backward_rows(const RmsNormBackward& a, const Stream& stream);

}  // namespace transmamba::cuda
