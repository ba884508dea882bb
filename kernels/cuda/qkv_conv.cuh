// Shared by qkv_conv.cu (any type, width and layout) and qkv_conv{,_backward}_walk.cu (fast).
#pragma once

#include "kernels/qkv_conv.h"

namespace transmamba::cuda {

/// Whether the fast kernels can: bfloat16, w = 4, rows that begin at multiples of 8 bytes, widths that are
/// multiples of 8.
bool can_walk(const QkvConv& a);
bool can_walk(const QkvConvBackward& a);
void qkv_conv_walk(const QkvConv& a, const Stream& stream);
void qkv_conv_backward_walk(const QkvConvBackward& a, const Stream& stream);

}  // namespace transmamba::cuda
