#include "parallel/plan/plan.h"

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

Config with_layout(Config config, const std::string& name) {
  config.parallel.cp_layout = name;
  return config;
}

/// The four ways to deal the sequence, each with what it would cost.
std::vector<LayoutChoice> compare_layouts(const Config& c, const Machine& machine,
                                          const std::vector<std::int64_t>& transpoints,
                                          const std::vector<double>& cost) {
  std::vector<LayoutChoice> choices;
  for (const char* name : {"contiguous", "zigzag", "striped", "balanced"}) {
    LayoutChoice& choice = choices.emplace_back();
    choice.name = name;
    try {
      const ContextLayout layout = plan_layout(with_layout(c, name), machine);
      for (const auto& mine : layout.segments) choice.segments = std::max(choice.segments, mine.size());
      choice.imbalance = imbalance(layout, cost);
      choice.waiting = waiting_imbalance({c, machine, layout}, transpoints);
    } catch (const Error& error) {
      choice.problem = error.what();
    }
  }
  return choices;
}

void check_vocabulary(const Config& config) {
  check(config.model.vocab_size > 0, "plan",
        "model.vocab_size: expected a number above 0, got 0, which means the data file's; no data is read "
        "here, so "
        "say --model.vocab_size N (256 for bytes)");
}

double mean_of(const Plan& plan, double (*part)(const LayerTime&)) {
  double sum = 0;
  for (const LayerTime& time : plan.stage_times) sum += part(time);
  return sum * static_cast<double>(plan.schedule.micro_batches) / plan.schedule.pp();
}

/// What of a step's gradient and parameter exchange no pass covers, on the pipeline rank where that is most.
/// The reduce-scatter runs beside the last micro-batch's backward, all but its last bucket; the all-gather
/// beside the first one's forward.
double exposed_dp_seconds(const Plan& plan) {
  const ParallelConfig& p = plan.config.parallel;
  const std::int64_t group = p.dp * p.cp;
  const Links& links = plan.machine.links(p.tp * p.cp * p.dp);
  double most = 0;
  for (std::size_t rank = 0; rank < plan.memory.size(); ++rank) {
    double forward = 0, backward = 0;
    for (std::size_t s = rank; s < plan.stages.size(); s += plan.memory.size())
      forward += plan.stage_times[s].forward(), backward += plan.stage_times[s].backward();
    const double bytes = plan.memory[rank].gradients;
    const double bucket = std::min(bytes, p.bucket_mb * (1 << 20));
    const double scatter = reduce_scatter_seconds(links, group, bytes);
    const double gather = all_gather_seconds(links, group, plan.memory[rank].parameters);
    most = std::max(most, std::max(scatter - backward, reduce_scatter_seconds(links, group, bucket)) +
                              std::max(gather - forward, 0.0));
  }
  return most;
}

}  // namespace

Plan make_plan(const Config& config, int ranks, const Machine& machine) {
  check_vocabulary(config);
  // The layout is made of the degrees, so they are checked first.
  Config resolved = config;
  resolved.parallel = resolve_parallel(config, ranks);
  Plan plan = make_plan(config, ranks, machine, plan_layout(resolved, machine));
  const Config& c = plan.config;
  const std::vector<double> cost = sequence_costs(c, machine);
  for (const auto& mine : plan.layout.segments) {
    double& sum = plan.rank_cost.emplace_back(0.0);
    for (const Segment& s : mine)
      for (std::int64_t i = s.begin; i < s.end; ++i) sum += cost[static_cast<std::size_t>(i)];
  }
  if (c.parallel.cp > 1) plan.layouts = compare_layouts(c, machine, plan.transpoints, cost);
  return plan;
}

Plan make_plan(const Config& config, int ranks, const Machine& machine, const ContextLayout& layout) {
  Config resolved = config;
  resolved.parallel = resolve_parallel(config, ranks);
  return make_plan(resolved, machine, layout, plan_stages(resolved, machine, layout));
}

Plan make_plan(const Config& config, const Machine& machine, const ContextLayout& layout,
               const std::vector<Stage>& stages) {
  check_vocabulary(config);
  Plan plan;
  plan.config = config;
  plan.machine = machine;
  const Config& c = plan.config;
  const ParallelConfig& p = c.parallel;
  plan.ranks = static_cast<int>(p.tp * p.cp * p.dp * p.pp);
  plan.transpoints = resolve_transpoints(c.model, c.train.seq_len);
  plan.layout = layout;
  plan.stages = stages;
  const RankShare share{c, machine, plan.layout};
  const std::vector<LayerTime> layers = layer_times(share, plan.transpoints);
  std::vector<double> forward, backward;
  for (const Stage& stage : plan.stages) {
    LayerTime time;
    for (std::int64_t i = stage.begin; i < stage.end; ++i) time += layers[static_cast<std::size_t>(i)];
    if (stage.is_first) time += embedding_time(share);
    if (stage.is_last) time += head_time(share);
    plan.stage_times.push_back(time);
    forward.push_back(time.forward());
    backward.push_back(time.backward());
  }
  plan.schedule = one_forward_one_backward(static_cast<int>(p.pp), static_cast<int>(p.virtual_stages),
                                           micro_batches(c, p));
  plan.timeline = simulate(plan.schedule, forward, backward, transfer_time(share));
  plan.memory = predict_memory(c, plan.transpoints, plan.layout, plan.stages, plan.schedule);

  StepTime& step = plan.step;
  step.compute = mean_of(plan, [](const LayerTime& t) { return t.compute.total(); });
  step.tp = mean_of(plan, [](const LayerTime& t) { return t.tp.total(); });
  step.cp = mean_of(plan, [](const LayerTime& t) { return t.cp.total(); });
  step.pp = std::max(0.0, plan.timeline.seconds - step.compute - step.tp - step.cp);
  step.dp = exposed_dp_seconds(plan);
  double parameters = 0;
  for (const Memory& memory : plan.memory)
    parameters = std::max(parameters, memory.gradients / statistics_bytes(c));
  step.optimizer = machine.adamw.call + machine.adamw.forward * parameters / static_cast<double>(p.dp * p.cp);
  plan.tokens_per_second = static_cast<double>(c.train.global_batch * c.train.seq_len) / step.total();
  return plan;
}

}  // namespace transmamba
