// Token embedding: a gather of rows, and its deterministic scatter-add.
#pragma once

#include "kernels/dispatch.h"

namespace transmamba {

/// y[b, t] = weight[tokens[b, t] - vocab_begin], or 0 if another shard of the vocabulary has the token's row:
/// y summed over shards is the embedding.  tokens (b, t) int32; weight (V, d), V may be 0; y (b, t, d): T.
/// A token outside [0, vocab_size) is, on every shard, an Error that names it and its place (CPU), so that
/// bad data cannot pass. CUDA cannot throw from a kernel and reads nothing out of bounds: such a token's y is
/// NaN.
struct Embedding {
  ConstView tokens;
  ConstView weight;
  View y;
  std::int64_t vocab_begin = 0;
  std::int64_t vocab_size = 0;  ///< of all shards together; 0: this shard is all
};
TRANSMAMBA_KERNEL(embedding, Embedding);

/// dweight (S) [tokens[b, t] - vocab_begin] += dy[b, t] (T), in order of (b, t); tokens of other shards add
/// nothing. CUDA adds each 256 of a word's tokens in their order, and these sums in theirs. A token outside
/// [0, vocab_size) is an Error (CPU), or makes the vocabulary's nearest row of dweight NaN (CUDA).
struct EmbeddingBackward {
  ConstView dy;
  ConstView tokens;
  View dweight;
  std::int64_t vocab_begin = 0;
  std::int64_t vocab_size = 0;  ///< of all shards together; 0: this shard is all
};
TRANSMAMBA_KERNEL(embedding_backward, EmbeddingBackward);

}  // namespace transmamba
