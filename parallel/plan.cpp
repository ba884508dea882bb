#include "parallel/plan.h"

#include <algorithm>

#include "core/transpoint.h"
#include "kernels/check.h"
#include "parallel/degrees.h"

namespace transmamba {
namespace {

std::vector<double> sequence_costs(const Config& c, const Machine& machine) {
  const auto transpoints = resolve_transpoints(c.model, c.train.seq_len);
  return token_costs(c.model, transpoints, machine, c.train.seq_len, c.parallel.cp > 1);
}

}  // namespace

Machine machine_of(const Config& config) { return Machine::of(config.parallel.machine, config.train.device); }

ContextLayout plan_layout(const Config& c, const Machine& machine) {
  const ParallelConfig& p = c.parallel;
  check_layout(p.cp_layout, c.train.seq_len, p.cp, p.cp_chunk);
  std::vector<double> cost;
  if (p.cp_layout == "balanced" && p.cp > 1) cost = sequence_costs(c, machine);
  return make_layout(p.cp_layout, c.train.seq_len, p.cp, p.cp_chunk, cost);
}

std::vector<Stage> plan_stages(const Config& c, const Machine& machine) {
  const ContextLayout layout = plan_layout(c, machine);
  const RankShare share{c, machine, layout};
  std::vector<double> cost;
  for (const LayerTime& layer : layer_times(share, resolve_transpoints(c.model, c.train.seq_len)))
    cost.push_back(layer.total().total());
  return partition(cost, embedding_time(share).total().total(), head_time(share).total().total(),
                   c.parallel.pp * c.parallel.virtual_stages);
}

}  // namespace transmamba
