// AdamW over all parameters, with clipping by the global gradient norm. Each data rank holds the moments of,
// and updates, its own part of every bucket (ParameterStore::owned): ZeRO-1.
#pragma once

#include "core/config.h"
#include "core/parameter.h"

namespace transmamba {

class Optimizer {
 public:
  /// `part`: this rank among the data ranks that share the store's buckets.
  Optimizer(const OptimizerConfig& config, const ParameterStore& store, const Context& context, int part = 0);

  /// Sum of the squares of the gradients that this rank owns and that are no copies: over all ranks, each
  /// parameter counts once.
  double squared_norm(const Context& context) const;
  /// One update, with the gradients scaled by min(1, clip_grad / (grad_norm + 1e-6)). `step` counts from 0.
  void step(const Context& context, std::int64_t step, double lr, double grad_norm);

  /// What this rank owns. The moments of run r are elements [r.owned_offset, + size) of m() and v().
  const std::vector<OwnedRun>& owned() const { return owned_; }
  const Tensor& m() const { return m_; }
  const Tensor& v() const { return v_; }

 private:
  OptimizerConfig config_;
  const ParameterStore* store_;
  std::vector<OwnedRun> owned_;
  Tensor m_, v_;
};

}  // namespace transmamba
