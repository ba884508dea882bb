// Both ends of the model, their matrices (V, d) cut by rows over tp ranks: token embedding, and the head's
// cross entropy. Any vocabulary size: the last ranks may have fewer rows, or none.
#pragma once

#include "core/parameter.h"
#include "parallel/layers/column_linear.h"

namespace transmamba {

/// The words of this rank, as a cut of (vocab_size).
ShardSpec vocab_shard(std::int64_t vocab_size, const Communicator& tp);

class VocabEmbedding {
 public:
  VocabEmbedding() = default;
  VocabEmbedding(Pack weight, std::int64_t vocab_size, Communicator& tp);

  /// This rank's run (rows, d) of the embeddings of tokens (b, t).
  Tensor forward(const Context& context, const Tensor& tokens) const;
  /// From the gradient of that.
  void backward(const Context& context, const Tensor& dresidual, const Tensor& tokens) const;

 private:
  Pack weight_;
  std::int64_t vocab_size_ = 0, begin_ = 0;
  Communicator* tp_ = nullptr;
};

/// Cross entropy of logits of which each tp rank has its rows' columns: ranks exchange the maximum, the sum
/// of exponentials and the target's logit of each token, never logits.
class VocabCrossEntropy {
 public:
  VocabCrossEntropy() = default;
  VocabCrossEntropy(std::int64_t vocab_size, Communicator& tp);
  std::int64_t mine() const { return mine_; }  ///< this rank's columns: (vocab_size / tp), or fewer

  /// Losses (b, t) in nats and their lse (b, t), both S, on every rank, from this rank's logits (b, t, V /
  /// tp).
  void forward(const Context& context, const Tensor& logits, const Tensor& targets, const Tensor& loss,
               const Tensor& lse) const;
  /// dlogits = scale (softmax - onehot), which may alias logits.
  void backward(const Context& context, const Tensor& logits, const Tensor& targets, const Tensor& lse,
                double scale, View dlogits) const;

 private:
  std::int64_t vocab_size_ = 0, begin_ = 0, mine_ = 0;
  Communicator* tp_ = nullptr;
};

}  // namespace transmamba
