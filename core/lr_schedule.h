// The learning rate of every step.
#pragma once

#include <cstdint>

#include "core/config.h"

namespace transmamba {

/// Rate of step `step` (from 0) of a run of `steps`: linear warm-up to lr at step warmup_steps, then a cosine
/// to min_lr at the last step, and min_lr past it. With w = warmup_steps and x = (step - w) / max(1, steps -
/// 1 - w):
///   step < w:  lr (step + 1) / w
///   else:      min_lr + (lr - min_lr) (1 + cos(pi min(1, x))) / 2
double learning_rate(const OptimizerConfig& optimizer, std::int64_t steps, std::int64_t step);

}  // namespace transmamba
