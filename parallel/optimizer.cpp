#include "parallel/optimizer.h"

#include <algorithm>

#include "kernels/adamw.h"
#include "kernels/elementwise.h"

namespace transmamba {

Optimizer::Optimizer(const OptimizerConfig& config, const ParameterStore& store, const Context& context,
                     int part)
    : config_(config),
      store_(&store),
      owned_(store.owned(part)),
      m_(context.empty({store.owned_size()})),
      v_(context.empty({store.owned_size()})) {
  fill({.value = 0, .y = m_}, context.stream);
  fill({.value = 0, .y = v_}, context.stream);
}

double Optimizer::squared_norm(const Context& context) const {
  const Tensor squares = context.empty({1}, DType::f64);
  fill({.value = 0, .y = squares}, context.stream);
  for (const OwnedRun& run : owned_)
    if (store_->parameters()[run.parameter].primary)
      sum({.x = store_->grads().slice(0, run.offset, run.offset + run.end - run.begin),
           .squares = true,
           .result = squares},
          context.stream);
  return *squares.ptr<double>();
}

void Optimizer::step(const Context& context, std::int64_t step, double lr, double grad_norm) {
  const double scale = std::min(1.0, config_.clip_grad / (grad_norm + 1e-6));
  for (const OwnedRun& run : owned_) {
    const std::int64_t size = run.end - run.begin;
    const auto flat = [&](const Tensor& x) { return x.slice(0, run.offset, run.offset + size); };
    const auto mine = [&](const Tensor& x) { return x.slice(0, run.owned_offset, run.owned_offset + size); };
    adamw({.weight = flat(store_->values()),
           .grad = flat(store_->grads()),
           .m = mine(m_),
           .v = mine(v_),
           .grad_scale = scale,
           .lr = lr,
           .beta1 = config_.beta1,
           .beta2 = config_.beta2,
           .eps = config_.eps,
           .weight_decay = store_->parameters()[run.parameter].weight_decay ? config_.weight_decay : 0,
           .step = step + 1},
          context.stream);
  }
}

}  // namespace transmamba
