#include "parallel/optimizer.h"

#include <algorithm>
#include <cmath>

#include "kernels/adamw.h"
#include "kernels/elementwise.h"

namespace transmamba {

Optimizer::Optimizer(const OptimizerConfig& config, const ParameterStore& store, const Context& context)
    : config_(config),
      store_(&store),
      m_(context.empty(store.values().shape())),
      v_(context.empty(store.values().shape())) {
  fill({.value = 0, .y = m_}, context.stream);
  fill({.value = 0, .y = v_}, context.stream);
}

double Optimizer::grad_norm(const Context& context) const {
  const Tensor squares = context.empty({1}, DType::f64);
  fill({.value = 0, .y = squares}, context.stream);
  sum({.x = store_->grads(), .squares = true, .result = squares}, context.stream);
  return std::sqrt(*squares.ptr<double>());
}

void Optimizer::step(const Context& context, std::int64_t step, double lr, double grad_norm) {
  const double scale = std::min(1.0, config_.clip_grad / (grad_norm + 1e-6));
  for (const Parameter& p : store_->parameters()) {
    const auto mine = [&](const Tensor& flat) { return flat.slice(0, p.offset, p.offset + p.value.numel()); };
    adamw({.weight = mine(store_->values()),
           .grad = mine(store_->grads()),
           .m = mine(m_),
           .v = mine(v_),
           .grad_scale = scale,
           .lr = lr,
           .beta1 = config_.beta1,
           .beta2 = config_.beta2,
           .eps = config_.eps,
           .weight_decay = p.weight_decay ? config_.weight_decay : 0,
           .step = step + 1},
          context.stream);
  }
}

}  // namespace transmamba
