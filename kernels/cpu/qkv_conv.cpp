// Conv and RoPE, one after the other: the CPU's caches make a pass cheap.
#include "kernels/qkv_conv.h"

#include <vector>

#include "kernels/cpu/conv.h"
#include "kernels/cpu/rope.h"
#include "kernels/elementwise.h"

namespace transmamba::cpu {
namespace {

/// q (part 0) or k (1) of the tokens that are rotated, as (b, rotated, h, n).
template <class V, class Arguments>
V rotated_part(const V& y, const Arguments& a, std::int64_t part) {
  const std::int64_t width = a.heads * a.qk_width;
  return y.slice(1, 0, a.rotated).slice(2, part * width, (part + 1) * width).split(2, a.qk_width);
}

}  // namespace

void qkv_conv(const QkvConv& a, const Stream& stream) {
  cpu::conv({.x = a.x, .halo = a.halo, .weight = a.weight, .bias = a.bias, .y = a.y}, stream);
  if (a.rotated == 0) return;
  for (const std::int64_t part : {0, 1}) {
    const View x = rotated_part(a.y, a, part);
    cpu::rope(
        {.x = x, .y = part == 1 && a.k_rotated ? a.k_rotated : x, .position = a.position, .theta = a.theta},
        stream);
  }
}

void qkv_conv_backward(const QkvConvBackward& a, const Stream& stream) {
  std::vector<std::byte> memory(static_cast<std::size_t>(a.dy.numel() * size_of(a.dy.dtype())));
  const View dy(memory.data(), a.dy.dtype(), a.dy.shape());  // of the convolution's output
  cpu::copy({.x = a.dy, .y = dy}, stream);
  if (a.rotated > 0) {
    const View dq = rotated_part(dy, a, 0), dk = rotated_part(dy, a, 1);
    const auto turn_back = [&](const ConstView& x, const View& y) {
      cpu::rope({.x = x, .y = y, .position = a.position, .theta = a.theta, .inverse = true}, stream);
    };
    turn_back(dq, dq);
    if (!a.dk_rotated) {
      turn_back(dk, dk);
    } else {
      std::vector<std::byte> turned(static_cast<std::size_t>(dk.numel() * size_of(dk.dtype())));
      const View extra(turned.data(), dk.dtype(), dk.shape());
      turn_back(a.dk_rotated, extra);
      cpu::add({.x = extra, .y = dk}, stream);
    }
  }
  cpu::conv_backward({.dy = dy,
                      .x = a.x,
                      .halo = a.halo,
                      .weight = a.weight,
                      .bias = a.bias,
                      .dx = a.dx,
                      .dhalo = a.dhalo,
                      .dweight = a.dweight,
                      .dbias = a.dbias},
                     stream);
}

}  // namespace transmamba::cpu
