#include "parallel/engine.h"

#include <cmath>
#include <utility>

#include "core/lr_schedule.h"
#include "core/profile.h"
#include "core/transpoint.h"
#include "kernels/elementwise.h"
#include "parallel/degrees.h"

namespace transmamba {
Engine::Engine(const Config& config, Placement placement, const Context& context)
    : config_(config),
      context_(context),
      model_(config.model, resolve_transpoints(config.model, config.train.seq_len), context, placement,
             static_cast<std::int64_t>(config.parallel.bucket_mb * (1 << 20)),
             recompute_of(config.train.recompute)),
      schedule_(one_forward_one_backward(mesh().pp().size(), model_.placement().chunks(),
                                         transmamba::micro_batches(config, config.parallel))),
      buckets_(model_),
      optimizer_(config.optimizer, model_.parameters(), context, mesh().data().rank()),
      sums_(context.empty({2}, DType::f64)) {
  check_schedule(schedule_);
  open_transfers(mesh());
  if (context.stream.device == Device::cuda && mesh().world().size() == 1 && config.train.cuda_graphs)
    micro_batch_ = std::make_unique<MicroBatch>(context_, model_, sums_.slice(0, 0, 1), 1 / tokens());
}

double Engine::tokens() const {
  return static_cast<double>(config_.train.global_batch * config_.train.seq_len);
}

void Engine::initialise() {
  model_.parameters().initialise(config_.train.seed,
                                 [&](std::size_t parameter, std::int64_t begin, const Tensor& values) {
                                   optimizer_.set_master(parameter, begin, values);
                                 });
}

void Engine::add_gradients(const Batches& batches) {
  {
    const Region region(context_, "zero gradients");
    fill({.value = 0, .y = sums_}, context_.stream);
    buckets_.start(context_);
  }
  if (micro_batch_)
    for (std::int64_t i = 0; i < micro_batches(); ++i) micro_batch_->run(i, batches(i));
  else
    run_schedule(context_, model_, schedule_, batches, sums_.slice(0, 0, 1),
                 {.scale = 1 / tokens(), .events = &buckets_, .is_first = !std::exchange(warm_, true)});
  const Region region(context_, "gradient sums and norm");
  buckets_.finish();
  // Each token and each parameter counts on one rank only, so sums over all ranks are exact.
  optimizer_.add_squared_norm(context_, sums_.slice(0, 1, 2));
  mesh().world().all_reduce("loss and gradient norm", sums_);
}

StepResult Engine::read(std::int64_t step) const {
  const Tensor sums = to_host(context_, sums_);
  const StepResult result{sums.ptr<double>()[0] / tokens(), std::sqrt(sums.ptr<double>()[1]), 0};
  check(std::isfinite(result.loss) && std::isfinite(result.grad_norm), "train",
        "step {}: loss {} and gradient norm {} must be finite; parameters are as they were before the step; "
        "a smaller optimizer.lr or optimizer.clip_grad may help",
        step + 1, result.loss, result.grad_norm);
  return result;
}

StepResult Engine::gradients(std::int64_t step, const Batches& batches) {
  add_gradients(batches);
  return read(step);
}

StepResult Engine::step(std::int64_t step, const Batches& batches) {
  const Region region(context_, "", {"step", step + 1});
  add_gradients(batches);
  const double lr = learning_rate(config_.optimizer, config_.train.steps, step);
  {
    const Region optimizer(context_, "optimizer");
    optimizer_.step(context_, step, lr, sums_.slice(0, 1, 2), sums_.slice(0, 0, 1));  // nothing unless finite
  }
  buckets_.start_gather();
  StepResult result = read(step);
  result.lr = lr;
  return result;
}

double Engine::evaluate(std::int64_t micro_batches, const Batches& batches, const Observer& observe) {
  const Tensor loss = context_.empty({1}, DType::f64);
  fill({.value = 0, .y = loss}, context_.stream);
  if (micro_batches > 0) {
    const Schedule schedule = forward_only(mesh().pp().size(), model_.placement().chunks(), micro_batches);
    run_schedule(context_, model_, schedule, batches, loss, {.observe = observe, .is_first = true});
  }
  mesh().world().all_reduce("validation loss", loss);
  return *to_host(context_, loss).ptr<double>();
}

}  // namespace transmamba
