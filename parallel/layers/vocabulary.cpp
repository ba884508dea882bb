#include "parallel/layers/vocabulary.h"

#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"

namespace transmamba {
ShardSpec vocab_shard(std::int64_t vocab_size, const Communicator& tp) {
  return {{vocab_size}, 0, tp.size(), tp.rank()};
}

VocabEmbedding::VocabEmbedding(Pack weight, std::int64_t vocab_size, Communicator& tp)
    : weight_(weight), vocab_size_(vocab_size), begin_(vocab_shard(vocab_size, tp).offset()[0]), tp_(&tp) {}

Tensor VocabEmbedding::forward(const Context& context, const Tensor& tokens) const {
  const View weight = weight_.value();
  const Tensor flat = tokens.merge(0),
               y = context.empty({TokenShard(*tp_, tokens.numel()).rows, weight.dim(1)});
  ScatterTokens sums(context, *tp_, tokens.numel(), y);  // each rank knows its words, and zero of others
  sums.each("embedding", [&](const TokenRun& run, const View& rows) {
    embedding({.tokens = flat.slice(0, run.begin, run.end).split(0, rows.dim(0)),
               .weight = weight,
               .y = rows.split(0, rows.dim(0)),
               .vocab_begin = begin_,
               .vocab_size = vocab_size_},
              context.stream);
  });
  sums.finish();
  return y;
}

void VocabEmbedding::backward(const Context& context, const Tensor& dresidual, const Tensor& tokens) const {
  const Tensor dy = GatherTokens(context, *tp_, "embedding gradients", dresidual, tokens.numel()).finish();
  embedding_backward({.dy = dy.split(0, tokens.dim(1)),
                      .tokens = tokens,
                      .dweight = weight_.grad(),
                      .vocab_begin = begin_,
                      .vocab_size = vocab_size_},
                     context.stream);
}

VocabCrossEntropy::VocabCrossEntropy(std::int64_t vocab_size, Communicator& tp)
    : vocab_size_(vocab_size),
      begin_(vocab_shard(vocab_size, tp).offset()[0]),
      mine_(vocab_shard(vocab_size, tp).shape()[0]),
      tp_(&tp) {}

void VocabCrossEntropy::forward(const Context& context, const Tensor& logits, const Tensor& targets,
                                const Tensor& loss, const Tensor& lse) const {
  const DType type = context.statistics();
  const Tensor own = context.empty(loss.shape(), type), maximum = context.empty(loss.shape(), type),
               partial = context.empty({2, loss.dim(0), loss.dim(1)}, type);
  cross_entropy_partial({.logits = logits,
                         .targets = targets,
                         .maximum = own,
                         .partial = partial,
                         .vocab_begin = begin_,
                         .vocab_size = vocab_size_},
                        context.stream);
  copy({.x = own, .y = maximum}, context.stream);
  tp_->all_reduce("cross entropy: maximum", maximum, Reduce::max);
  cross_entropy_rescale({.own = own, .maximum = maximum, .partial = partial}, context.stream);
  tp_->all_reduce("cross entropy: sums", partial);
  cross_entropy_loss({.maximum = maximum, .partial = partial, .loss = loss, .lse = lse}, context.stream);
}

void VocabCrossEntropy::backward(const Context& context, const Tensor& logits, const Tensor& targets,
                                 const Tensor& lse, double scale, View dlogits) const {
  cross_entropy_backward({.logits = logits,
                          .targets = targets,
                          .lse = lse,
                          .scale = scale,
                          .dlogits = dlogits,
                          .vocab_begin = begin_,
                          .vocab_size = vocab_size_},
                         context.stream);
}

}  // namespace transmamba
