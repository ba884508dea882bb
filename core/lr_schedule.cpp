#include "core/lr_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/check.h"

namespace transmamba {

double learning_rate(const OptimizerConfig& optimizer, std::int64_t steps, std::int64_t step) {
  check(step >= 0, "learning_rate", "expected a step of at least 0, got {}", step);
  const std::int64_t warmup = optimizer.warmup_steps;
  if (step < warmup) return optimizer.lr * static_cast<double>(step + 1) / static_cast<double>(warmup);
  const std::int64_t length = std::max<std::int64_t>(1, steps - 1 - warmup);
  const double x = std::min(1.0, static_cast<double>(step - warmup) / static_cast<double>(length));
  return optimizer.min_lr + 0.5 * (optimizer.lr - optimizer.min_lr) * (1 + std::cos(std::numbers::pi * x));
}

}  // namespace transmamba
