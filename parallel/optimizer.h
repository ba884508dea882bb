// AdamW over all parameters, with clipping by the global gradient norm. Each data rank holds the moments of,
// and updates, its own part of every bucket (ParameterStore::owned): ZeRO-1. Where the store's values are
// narrower than type S, it also holds master weights, of type S, of which the values are the rounded copy.
#pragma once

#include <vector>

#include "core/config.h"
#include "core/parameter.h"

namespace transmamba {

class Optimizer {
 public:
  /// `part`: this rank among the data ranks that share the store's buckets. Master weights are undefined
  /// until set_master() has had all of them.
  Optimizer(const OptimizerConfig& config, const ParameterStore& store, const Context& context, int part = 0);

  /// result (1) float64 += the squares of the gradients that this rank owns and that are no copies: over all
  /// ranks, each parameter counts once. On the device; nothing waits.
  void add_squared_norm(const Context& context, const View& result) const;
  /// One update, with the gradients scaled by min(1, clip_grad / (grad_norm + 1e-6)). `squared_norm` (1)
  /// float64 lies on the device, as does the optional `loss` (1) float64; where one is not finite nothing
  /// changes. `step` counts from 0.
  void step(const Context& context, std::int64_t step, double lr, const ConstView& squared_norm,
            const ConstView& loss = {});

  /// Master weights are to be what they are of these elements (as ParameterStore::Values has them).
  void set_master(std::size_t parameter, std::int64_t begin, const Tensor& values);

  /// What this rank owns; and of one such run, 1-D and of type S, its weights (the master's where there is
  /// one) and moments.
  const std::vector<OwnedRun>& owned() const { return owned_; }
  View weights(const OwnedRun& run) const;
  View m(const OwnedRun& run) const { return of(m_, run); }
  View v(const OwnedRun& run) const { return of(v_, run); }

 private:
  /// This rank's part of a bucket.
  struct Part {
    View values, grads;
    View master, m, v;  ///< master absent: the values are it
    bool weight_decay = false, primary = true;
  };
  static View of(const Tensor& flat, const OwnedRun& run) {
    return flat.slice(0, run.owned_offset, run.owned_offset + run.end - run.begin);
  }
  OptimizerConfig config_;
  const ParameterStore* store_;
  std::vector<OwnedRun> owned_;
  std::vector<Part> parts_;
  Tensor master_, m_, v_;  // in the order of owned_; master_ of the first elements only
};

}  // namespace transmamba
