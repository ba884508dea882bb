// One optimizer step: gradients over its micro-batches, clipping, AdamW.
#pragma once

#include <functional>

#include "core/config.h"
#include "parallel/model.h"
#include "parallel/optimizer.h"

namespace transmamba {

/// Next-token prediction: targets[b, t] follows tokens[b, t]. Both (b, t) int32.
struct Batch {
  Tensor tokens, targets;
};

struct StepResult {
  double loss = 0;       ///< mean over the step's tokens, in nats, before the update
  double grad_norm = 0;  ///< before clipping
  double lr = 0;
};

/// Step `step` (from 0) over `micro_batches` batches of equal size, asked for one at a time.
/// Throws Error, leaving parameters and moments as they were, if the loss or the gradient norm is not finite.
StepResult train_step(const Context& context, const Config& config, std::int64_t step,
                      std::int64_t micro_batches, const std::function<Batch(std::int64_t)>& next_batch,
                      Model& model, Optimizer& optimizer);

/// Sum of the token losses of one batch, in nats, without gradients.
double evaluate(const Context& context, const Model& model, const Batch& batch);

}  // namespace transmamba
