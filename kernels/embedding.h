// Token embedding: a gather of rows, and its deterministic scatter-add.
#pragma once

#include "kernels/dispatch.h"

namespace transmamba {

/// y[b, t] = weight[tokens[b, t]].  tokens (b, t) int32; weight (V, d); y (b, t, d).
/// A token outside [0, V) is an Error that names it and its place (CPU), so that bad data cannot pass. CUDA
/// cannot throw from a kernel and reads nothing out of bounds: such a token's y is NaN.
struct Embedding {
  ConstView tokens;
  ConstView weight;
  View y;
};
TRANSMAMBA_KERNEL(embedding, Embedding);

/// dweight[tokens[b, t]] += dy[b, t], in order of (b, t). A token outside [0, V) is an Error (CPU), or makes
/// the nearest row of dweight NaN (CUDA).
struct EmbeddingBackward {
  ConstView dy;
  ConstView tokens;
  View dweight;
};
TRANSMAMBA_KERNEL(embedding_backward, EmbeddingBackward);

}  // namespace transmamba
