// AdamW over all parameters, with clipping by the global gradient norm.
#pragma once

#include "core/config.h"
#include "core/parameter.h"

namespace transmamba {

class Optimizer {
 public:
  Optimizer(const OptimizerConfig& config, const ParameterStore& store, const Context& context);

  /// Norm of all gradients together, each counted once.
  double grad_norm(const Context& context) const;
  /// One update, with the gradients scaled by min(1, clip_grad / (grad_norm + 1e-6)). `step` counts from 0.
  void step(const Context& context, std::int64_t step, double lr, double grad_norm);

  /// First and second moments, flat like ParameterStore::values().
  const Tensor& m() const { return m_; }
  const Tensor& v() const { return v_; }

 private:
  OptimizerConfig config_;
  const ParameterStore* store_;
  Tensor m_, v_;
};

}  // namespace transmamba
