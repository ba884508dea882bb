// Token embedding: a gather of rows, and its deterministic scatter-add.
#pragma once

#include "kernels/dispatch.h"

namespace transmamba {

/// y[b, t] = weight[tokens[b, t]].  tokens (b, t) int32; weight (V, d); y (b, t, d).
/// A token outside [0, V) is an Error that names it and its place (CPU), so that bad data cannot pass.
struct Embedding {
  ConstView tokens;
  ConstView weight;
  View y;
};
TRANSMAMBA_KERNEL(embedding, Embedding);

/// dweight[tokens[b, t]] += dy[b, t], in order of (b, t).
struct EmbeddingBackward {
  ConstView dy;
  ConstView tokens;
  View dweight;
};
TRANSMAMBA_KERNEL(embedding_backward, EmbeddingBackward);

}  // namespace transmamba
