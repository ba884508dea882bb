#include "parallel/engine.h"

#include <cmath>

#include "core/lr_schedule.h"
#include "core/transpoint.h"
#include "parallel/degrees.h"

namespace transmamba {
Engine::Engine(const Config& config, Placement placement, const Context& context)
    : config_(config),
      context_(context),
      model_(config.model, resolve_transpoints(config.model, config.train.seq_len), context, placement,
             static_cast<std::int64_t>(config.parallel.bucket_mb * (1 << 20))),
      schedule_(one_forward_one_backward(mesh().pp().size(), model_.placement().chunks(),
                                         transmamba::micro_batches(config, config.parallel))),
      buckets_(model_),
      optimizer_(config.optimizer, model_.parameters(), context, mesh().data().rank()) {
  check_schedule(schedule_);
}

StepResult Engine::gradients(std::int64_t step, const Batches& batches) {
  const double tokens = static_cast<double>(config_.train.global_batch * config_.train.seq_len);
  buckets_.start(context_);
  const double loss =
      run_schedule(context_, model_, schedule_, batches, {.scale = 1 / tokens, .events = &buckets_});
  buckets_.finish();
  // Each token and each parameter counts on one rank only, so sums over all ranks are exact.
  const Tensor sums = context_.empty({2}, DType::f64);
  sums.ptr<double>()[0] = loss;
  sums.ptr<double>()[1] = optimizer_.squared_norm(context_);
  mesh().world().all_reduce("loss and gradient norm", sums);
  const StepResult result{sums.ptr<double>()[0] / tokens, std::sqrt(sums.ptr<double>()[1]), 0};
  check(std::isfinite(result.loss) && std::isfinite(result.grad_norm), "train",
        "step {}: loss {} and gradient norm {} must be finite; parameters are as they were before the step; "
        "a smaller optimizer.lr or optimizer.clip_grad may help",
        step + 1, result.loss, result.grad_norm);
  return result;
}

StepResult Engine::step(std::int64_t step, const Batches& batches) {
  StepResult result = gradients(step, batches);
  result.lr = learning_rate(config_.optimizer, config_.train.steps, step);
  optimizer_.step(context_, step, result.lr, result.grad_norm);
  buckets_.start_gather();
  return result;
}

double Engine::evaluate(std::int64_t micro_batches, const Batches& batches, const Observer& observe) {
  const Tensor loss = context_.empty({1}, DType::f64);
  *loss.ptr<double>() = 0;
  if (micro_batches > 0) {
    const Schedule schedule = forward_only(mesh().pp().size(), model_.placement().chunks(), micro_batches);
    *loss.ptr<double>() = run_schedule(context_, model_, schedule, batches, {.observe = observe});
  }
  mesh().world().all_reduce("validation loss", loss);
  return *loss.ptr<double>();
}

}  // namespace transmamba
