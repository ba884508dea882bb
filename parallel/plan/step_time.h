// Seconds of a layer, a stage and a step on one rank of a mesh: core/step_cost.h's for the tokens that a
// context layout deals to it, and what it says to others meanwhile.
#pragma once

#include <span>

#include "core/step_cost.h"
#include "parallel/context/layout.h"
#include "parallel/pipeline/partition.h"

namespace transmamba {

/// Where seconds go. What train.recompute has backward passes do again is theirs. Communication is what is
/// not hidden by products: on a GPU tp's beside those of the same layer. The rest counts as exposed.
struct LayerTime {
  Seconds compute, tp, cp;
  Seconds total() const { return {forward(), backward()}; }
  double forward() const { return compute.forward + tp.forward + cp.forward; }
  double backward() const { return compute.backward + tp.backward + cp.backward; }
  LayerTime& operator+=(const LayerTime& other) {
    compute += other.compute, tp += other.tp, cp += other.cp;
    return *this;
  }
};

/// What the functions below need to know of a run. `parallel` is resolved (parallel/degrees.h), or has dp = 0
/// where that does not matter.
struct RankShare {
  const Config& config;
  const Machine& machine;
  const ContextLayout& layout;
};

/// Of one micro-batch, in the mean of the context ranks.
LayerTime mlp_time(const RankShare& share);
LayerTime embedding_time(const RankShare& share);
LayerTime head_time(const RankShare& share);
/// What one stage of a pipeline hands to the next. `parallel` is resolved.
double transfer_time(const RankShare& share);
/// Of every layer in order; `transpoints`: one a mixer. What context ranks wait for each other is mixers'
/// time.
std::vector<LayerTime> layer_times(const RankShare& share, std::span<const std::int64_t> transpoints);

/// Kernels of a micro-batch until the last context rank is through, over the mean of the ranks': 1 is
/// perfect.
double waiting_imbalance(const RankShare& share, std::span<const std::int64_t> transpoints);

/// Bytes of an element of train.dtype, and of its statistics' type S (kernels/types.h).
double element_bytes(const Config& config);
double statistics_bytes(const Config& config);

}  // namespace transmamba
