#pragma once

#include "kernels/attention.h"

namespace transmamba::cuda {

void attention_bf16(const Attention&, const Stream&);
void attention_backward_bf16(const AttentionBackward&, const Stream&);

// What cuDNN has no kernels for.

/// o and lse become those over the keys of both, as Attention says of `continues`: o (b, tq, h, p) of
/// bfloat16, rows of whole 16 bytes; lse (b, h, tq) of float32. more_* may have other strides; nothing
/// overlaps.
struct MergeAttention {
  ConstView more_o, more_lse;
  View o, lse;
};
void merge_attention_bf16(const MergeAttention&, const Stream&);

/// attention_backward of one query and one key a head.
void one_score_backward_bf16(const AttentionBackward&, const Stream&);

}  // namespace transmamba::cuda
