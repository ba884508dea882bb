#include "parallel/engine.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "core/lr_schedule.h"
#include "core/profile.h"
#include "core/transpoint.h"
#include "kernels/elementwise.h"
#include "parallel/context/conv_halo.h"
#include "parallel/context/state_handoff.h"
#include "parallel/degrees.h"
#include "parallel/layers/token_shard.h"

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
      sums_(context.empty({5}, DType::f64)),
      own_loss_(context.empty({1}, DType::f64)) {
  check_schedule(schedule_);
  open_ways();
  if (context.stream.device == Device::cuda && mesh().world().size() == 1 && config.train.cuda_graphs)
    micro_batch_ = std::make_unique<MicroBatch>(context_, model_, sums_.slice(0, 0, 1), 1 / tokens());
}

void Engine::open_ways() {
  const ModelConfig& m = config_.model;
  const Sequence sequence = model_.sequence(config_.train.seq_len);
  const std::int64_t b = config_.train.micro_batch, t = sequence.tokens();
  const bool by_copies = context_.stream.device == Device::cuda && config_.parallel.copy_engines;
  open_transfers(
      mesh(), by_copies ? TokenShard(mesh().tp(), b * t).rows * m.hidden_size * size_of(context_.dtype) : 0);
  if (!by_copies) return;
  if (context_.statistics() == DType::f32) mesh().data().open_sums();
  mesh().tp().open_window(token_window_bytes(mesh().tp(), b * t, m.hidden_size, context_.dtype));
  if (mesh().cp().size() == 1) return;
  const std::int64_t h = m.num_heads / mesh().tp().size(), n = m.qk_head_dim, p = m.v_head_dim;
  const std::int64_t states = handoff_window_bytes(sequence, b, h, n, p, context_.statistics()),
                     halo = halo_exchange(sequence, m.conv_width - 1)
                                .window_bytes(b, h * (2 * n + p), context_.dtype);
  mesh().cp().open_window(window_room(states) + window_room(halo));
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

void Engine::add_gradients(const Batches& batches, const StepOptions& options) {
  {
    const Region region(context_, "zero gradients");
    fill({.value = 0, .y = sums_}, context_.stream);
    buckets_.start(context_);
    if (options.spoils)
      fill({.value = std::numeric_limits<double>::quiet_NaN(), .y = model_.parameters().parameters()[0].grad},
           context_.stream);
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
  const StepFlags flags = options.flags ? options.flags() : StepFlags();
  for (const auto& [place, is_raised] :
       {std::pair{2, flags.stops}, {3, flags.is_saving}, {4, flags.save_failed}})
    if (is_raised) fill({.value = 1, .y = sums_.slice(0, place, place + 1)}, context_.stream);
  copy({.x = sums_.slice(0, 0, 1), .y = own_loss_}, context_.stream);
  mesh().world().all_reduce("loss and gradient norm", sums_);
}

StepResult Engine::read() const {
  const Tensor sums = to_host(context_, sums_);
  const double* const sum = sums.ptr<double>();
  StepResult result{.loss = sum[0] / tokens(), .grad_norm = std::sqrt(sum[1])};
  result.skipped = !std::isfinite(result.loss) || !std::isfinite(result.grad_norm);
  result.flags = {.stops = sum[2] > 0, .is_saving = sum[3] > 0, .save_failed = sum[4] > 0};
  return result;
}

StepResult Engine::gradients(std::int64_t step, const Batches& batches) {
  add_gradients(batches);
  const StepResult result = read();
  check(!result.skipped, "train", "step {}: loss {} and gradient norm {} must be finite", step + 1,
        result.loss, result.grad_norm);
  return result;
}

StepResult Engine::step(std::int64_t step, const Batches& batches, const StepOptions& options) {
  const Region region(context_, "", {"step", step + 1});
  mesh().world().recorder().set_step(step + 1);
  add_gradients(batches, options);
  const double lr = learning_rate(config_.optimizer, config_.train.steps, step);
  const bool is_spike = std::isfinite(options.largest_loss) && read().loss > options.largest_loss;
  if (!is_spike) {
    const Region optimizer(context_, "optimizer");
    if (options.after) options.after->hold(context_.stream);
    optimizer_.step(context_, step, lr, sums_.slice(0, 1, 2), sums_.slice(0, 0, 1));  // nothing unless finite
  }
  buckets_.start_gather();
  StepResult result = read();
  result.lr = lr;
  result.skipped |= is_spike;
  return result;
}

std::string Engine::not_finite() const {
  const ParameterStore& store = model_.parameters();
  std::size_t last = 0;
  std::int64_t count = 0;
  for (const OwnedRun& run : optimizer_.owned()) {
    const Parameter& p = store.parameters()[run.parameter];
    const View flat(p.grad.raw(), p.grad.dtype(), {p.grad.numel()});
    const Tensor squares = context_.empty({1}, DType::f64);
    fill({.value = 0, .y = squares}, context_.stream);
    sum({.x = flat.slice(0, run.begin, run.end), .squares = true, .result = squares}, context_.stream);
    if (!std::isfinite(*to_host(context_, squares).ptr<double>()))
      ++count, last = std::max(last, run.parameter);
  }
  std::string text;
  if (!std::isfinite(*to_host(context_, own_loss_).ptr<double>())) text = "the loss";
  if (count > 0)
    text += fmt::format("{}the gradient of {} and {} more", text.empty() ? "" : ", ",
                        store.parameters()[last].name, count - 1);
  return text;
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
