#include "parallel/plan/search.h"

#include <algorithm>

#include "core/metrics.h"
#include "kernels/check.h"
#include "parallel/degrees.h"

namespace transmamba {
namespace {

std::vector<std::int64_t> divisors(std::int64_t number, std::int64_t most) {
  std::vector<std::int64_t> found;
  for (std::int64_t x = 1; x <= std::min(number, most); ++x)
    if (number % x == 0) found.push_back(x);
  return found;
}

}  // namespace

MeshChoice plan_quickly(const Config& config, const Machine& machine, const ContextLayout& layout) {
  const ParallelConfig& p = config.parallel;
  const std::int64_t all = micro_batches(config, p), group = p.pp * p.virtual_stages, few = 4 * group;
  const std::vector<Stage> stages = plan_stages(config, machine, layout);
  const auto plan_of = [&](std::int64_t count) {
    Config c = config;
    c.train.global_batch = count * c.train.micro_batch * p.dp;
    return make_plan(c, machine, layout, stages);
  };
  if (all <= few + group) {
    const Plan plan = plan_of(all);
    return {p, plan.step, plan.memory};
  }
  const std::int64_t counted = few + all % group;
  const Plan shorter = plan_of(counted), longer = plan_of(counted + group);
  const double groups = static_cast<double>((all - counted) / group);
  StepTime step = shorter.step;
  for (double StepTime::*part : {&StepTime::compute, &StepTime::tp, &StepTime::cp, &StepTime::pp})
    step.*part += groups * (longer.step.*part - shorter.step.*part);
  step.pp = std::max(step.pp, 0.0);  // a difference of sums that differ in their last bits
  return {p, step, shorter.memory};
}

const ContextLayout& MeshSearch::layout(const Config& config) {
  const std::array key{config.train.seq_len, config.parallel.cp, config.parallel.tp};
  const auto found = layouts_.find(key);
  return found != layouts_.end() ? found->second
                                 : layouts_.emplace(key, plan_layout(config, machine_)).first->second;
}

std::optional<MeshChoice> MeshSearch::fastest(const Config& config, int ranks, std::string& problem) {
  std::optional<MeshChoice> best;
  const auto consider = [&](std::int64_t tp, std::int64_t pp, std::int64_t cp) {
    Config c = config;
    c.parallel.tp = tp, c.parallel.pp = pp, c.parallel.cp = cp, c.parallel.dp = 0;
    if (pp == 1) c.parallel.virtual_stages = 1;
    try {
      c.parallel = resolve_parallel(c, ranks);
      MeshChoice plan = plan_quickly(c, machine_, layout(c));
      double needed = 0;
      for (const Memory& memory : plan.memory) needed = std::max(needed, memory.total());
      check(bounds_.memory_bytes == 0 || needed <= bounds_.memory_bytes, "memory",
            "tp {} x cp {} x pp {} needs {} a rank, which has {}", tp, cp, pp,
            format_bytes(static_cast<std::int64_t>(needed)),
            format_bytes(static_cast<std::int64_t>(bounds_.memory_bytes)));
      // The sums of equal plans differ in their last bits.
      if (!best || plan.step.total() < best->step.total() * (1 - 1e-9)) best = std::move(plan);
    } catch (const Error& error) {
      problem = error.what();
    }
  };
  for (const std::int64_t tp : divisors(ranks, machine_.ranks_per_host))
    for (const std::int64_t pp : divisors(ranks / tp, std::min(bounds_.most_pp, config.model.num_layers)))
      for (const std::int64_t cp : divisors(ranks / (tp * pp), bounds_.most_cp)) consider(tp, pp, cp);
  return best;
}

}  // namespace transmamba
