#include "parallel/step.h"

#include <cmath>

#include "core/lr_schedule.h"
#include "kernels/elementwise.h"

namespace transmamba {
namespace {

double total(const Context& context, const Tensor& x) {
  const Tensor result = context.empty({1}, DType::f64);
  fill({.value = 0, .y = result}, context.stream);
  sum({.x = x, .result = result}, context.stream);
  return *result.ptr<double>();
}

}  // namespace

StepResult train_step(const Context& context, const Config& config, std::int64_t step,
                      std::int64_t micro_batches, const std::function<Batch(std::int64_t)>& next_batch,
                      Model& model, Optimizer& optimizer) {
  StepResult result;
  model.parameters().zero_grad(context.stream);
  for (std::int64_t i = 0; i < micro_batches; ++i) {
    const Batch batch = next_batch(i);
    const double tokens = static_cast<double>(batch.tokens.numel()) * static_cast<double>(micro_batches);
    Model::Saved saved;
    const Tensor logits = model.forward(context, batch.tokens, &saved);
    result.loss += total(context, model.token_losses(context, logits, batch.targets, &saved)) / tokens;
    model.backward(context, 1 / tokens, saved);
  }
  result.grad_norm = optimizer.grad_norm(context);
  result.lr = learning_rate(config.optimizer, config.train.steps, step);
  check(std::isfinite(result.loss) && std::isfinite(result.grad_norm), "train",
        "step {}: loss {} and gradient norm {} must be finite; parameters are as they were before the step; "
        "a smaller "
        "optimizer.lr or optimizer.clip_grad may help",
        step + 1, result.loss, result.grad_norm);
  optimizer.step(context, step, result.lr, result.grad_norm);
  return result;
}

double evaluate(const Context& context, const Model& model, const Batch& batch) {
  const Tensor logits = model.forward(context, batch.tokens, nullptr);
  return total(context, model.token_losses(context, logits, batch.targets, nullptr));
}

}  // namespace transmamba
