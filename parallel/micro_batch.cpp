#include "parallel/micro_batch.h"

#include "core/profile.h"
#include "kernels/elementwise.h"

namespace transmamba {

MicroBatch::MicroBatch(const Context& context, const Model& model, const View& loss, double scale)
    : context_(context), model_(model), loss_(loss), scale_(scale) {}

void MicroBatch::enqueue(std::int64_t number) const {
  Model::Saved saved;
  {
    const Region region(context_, "forward", {"micro-batch", number});
    // `saved` alone holds the logits in the backward pass, which drops them
    const Tensor logits = model_.forward(context_, tokens_, &saved);
    sum({.x = model_.token_losses(context_, logits, targets_, &saved), .result = loss_}, context_.stream);
  }
  const Region region(context_, "backward", {"micro-batch", number});
  model_.backward(context_, scale_, saved);
}

void MicroBatch::run(std::int64_t number, const Batch& batch) {
  if (!tokens_) {
    tokens_ = context_.empty(batch.tokens.shape(), DType::i32);
    targets_ = context_.empty(batch.targets.shape(), DType::i32);
  }
  from_host(context_, batch.tokens, tokens_);
  from_host(context_, batch.targets, targets_);
  const std::uint64_t in_use = context_.memory->fingerprint();
  const bool is_profiled = context_.profile && context_.profile->records();
  if (runs_++ == 0 || is_profiled) return enqueue(number);
  mismatches_ = graph_ && in_use != fingerprint_ ? mismatches_ + 1 : 0;
  if (mismatches_ > patience_) {
    synchronize(context_);  // the graph may still be running
    graph_.reset();
    patience_ *= 2;  // where memory never settles, captures must not cost more than they save
  }
  if (!graph_) {
    graph_ = gpu::capture(context_.stream, [&] { enqueue(number); });
    fingerprint_ = in_use, mismatches_ = 0;
  }
  if (in_use != fingerprint_) return enqueue(number);
  graph_->launch(context_.stream);
  ++replays_;
}

}  // namespace transmamba
