// What the causal convolution reads before each segment: the last `width` = w - 1 inputs of the tokens before
// it, whoever holds them. Only w - 1 tokens a segment cross ranks, whatever the length.
#pragma once

#include "parallel/context/token_exchange.h"

namespace transmamba {

/// Tokens [i width, (i + 1) width) of what a rank gathers are the halo of its segment i; before the
/// sequence's first token nothing is written.
TokenExchange halo_exchange(const Sequence& sequence, std::int64_t width);

/// The halo of segment `i` in what a rank gathered (b, segments width, c), or nothing if that is absent.
inline Tensor segment_halo(const Tensor& halos, std::size_t i, std::int64_t width) {
  const auto first = static_cast<std::int64_t>(i) * width;
  return halos ? halos.slice(1, first, first + width) : Tensor();
}

}  // namespace transmamba
