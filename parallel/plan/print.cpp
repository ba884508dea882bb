#include <fmt/format.h>

#include <algorithm>

#include "core/cost_model.h"
#include "core/metrics.h"
#include "parallel/plan/plan.h"

namespace transmamba {
namespace {

std::string duration(double seconds) {
  if (seconds < 1e-3) return fmt::format("{:.1f} us", seconds * 1e6);
  if (seconds < 1) return fmt::format("{:.2f} ms", seconds * 1e3);
  return seconds < 100 ? fmt::format("{:.3g} s", seconds) : format_duration(seconds);
}

std::string bytes(double count) { return format_bytes(static_cast<std::int64_t>(count)); }

std::string mesh(const Plan& plan) {
  const ParallelConfig& p = plan.config.parallel;
  return fmt::format(
      "mesh      {} ranks = tp {} x cp {} x dp {} x pp {}; {} micro-batches of {} x {} tokens a step\n",
      plan.ranks, p.tp, p.cp, p.dp, p.pp, plan.schedule.micro_batches, plan.config.train.micro_batch,
      plan.config.train.seq_len);
}

std::string machine(const Plan& plan) {
  std::string text = fmt::format("machine   {} ({})\n", plan.machine.name, plan.machine.measured_on);
  if (plan.machine.dtype != plan.config.train.dtype)
    text += fmt::format("          its numbers are of {}, this run computes in {}: expect other seconds\n",
                        plan.machine.dtype, plan.config.train.dtype);
  return text;
}

/// Layers as runs of one kind of pair would be unreadable with 64 of them; TransPoints say what matters.
std::string stages(const Plan& plan) {
  std::string text = "\nstage  rank  layers      ms a micro-batch  TransPoints of its mixers\n";
  std::size_t mixer = 0;
  for (std::size_t s = 0; s < plan.stages.size(); ++s) {
    const Stage& stage = plan.stages[s];
    std::vector<std::int64_t> points;
    for (std::int64_t i = stage.begin; i < stage.end; ++i)
      if (plan.config.model.kind(i) == 'T') points.push_back(plan.transpoints[mixer++]);
    std::string list = fmt::format(
        "{}",
        fmt::join(points.begin(), points.begin() + std::min<std::ptrdiff_t>(12, std::ssize(points)), " "));
    if (points.size() > 12) list += fmt::format(" .. ({} mixers)", points.size());
    text += fmt::format("{:>5}  {:>4}  {:<10}  {:>16.2f}  {}{}{}\n", s, s % plan.memory.size(),
                        fmt::format("{} .. {}", stage.begin, stage.end - 1),
                        1e3 * plan.stage_times[s].total().total(), stage.is_first ? "[embedding] " : "", list,
                        stage.is_last ? " [head]" : "");
  }
  return text;
}

std::string context(const Plan& plan) {
  if (plan.config.parallel.cp == 1) return "";
  std::string text =
      fmt::format("\ncontext layout: {}\n  rank  cost/mean  segments\n", plan.config.parallel.cp_layout);
  double mean = 0;
  for (const double cost : plan.rank_cost) mean += cost / static_cast<double>(plan.rank_cost.size());
  for (std::size_t r = 0; r < plan.layout.segments.size(); ++r) {
    text += fmt::format("  {:>4}  {:>9.3f} ", r, mean > 0 ? plan.rank_cost[r] / mean : 1.0);
    std::size_t shown = 0;
    for (const Segment& s : plan.layout.segments[r]) {
      if (++shown > 6) break;
      text += fmt::format(" [{}, {})", s.begin, s.end);
    }
    if (plan.layout.segments[r].size() > 6)
      text += fmt::format(" .. ({} in all)", plan.layout.segments[r].size());
    text += '\n';
  }
  text +=
      "  all layouts: busiest rank / mean over all layers; and the slowest, which waits for others, / mean\n"
      "  layout      segments  busiest/mean  waiting\n";
  for (const LayoutChoice& choice : plan.layouts)
    text += choice.problem.empty() ? fmt::format("  {:<10}  {:>8}  {:>12.4f}  {:>7.4f}\n", choice.name,
                                                 choice.segments, choice.imbalance, choice.waiting)
                                   : fmt::format("  {:<10}  not possible: {}\n", choice.name, choice.problem);
  return text;
}

std::string memory(const Plan& plan) {
  const auto worst = std::max_element(plan.memory.begin(), plan.memory.end(),
                                      [](const Memory& a, const Memory& b) { return a.total() < b.total(); });
  return fmt::format(
      "\nmemory    {} on pipeline rank {}, the fullest: parameters {}, gradients {}, optimizer {}, "
      "activations {}, working {}, workspaces {}\n",
      bytes(worst->total()), worst - plan.memory.begin(), bytes(worst->parameters), bytes(worst->gradients),
      bytes(worst->optimizer), bytes(worst->activations), bytes(worst->working), bytes(worst->workspaces));
}

std::string step(const Plan& plan) {
  const StepTime& t = plan.step;
  const double total = t.total();
  std::string text = fmt::format("step      {}, {:.0f} tokens/s\n", duration(total), plan.tokens_per_second);
  const auto part = [&](const char* name, double seconds, const char* what) {
    if (seconds > 1e-6 * total)
      text += fmt::format("          {:<9} {:>5.1f} %  {:>9}  {}\n", name, 100 * seconds / total,
                          duration(seconds), what);
  };
  part("compute", t.compute, "kernels, mean over pipeline ranks");
  part("tp", t.tp, "all-gathers and reduce-scatters around layers");
  part("cp", t.cp, "keys and values, summaries, halos");
  part("pp", t.pp, "bubble, uneven stages and transfers");
  part("dp", t.dp, "gradients and parameters, beyond what passes cover");
  part("optimizer", t.optimizer, "AdamW on this rank's share");
  return text;
}

/// The whole step where it is short; of a long one as many micro-batches as show its beginning and its end.
std::string pipeline(const Plan& plan) {
  const int pp = plan.schedule.pp(), chunks = plan.schedule.chunks;
  if (pp == 1) return "";
  const std::int64_t shown = std::min(plan.schedule.micro_batches, std::int64_t{2} * pp);
  std::vector<double> forward, backward;
  for (const LayerTime& time : plan.stage_times)
    forward.push_back(time.forward()), backward.push_back(time.backward());
  const Schedule part = one_forward_one_backward(pp, chunks, shown);
  const std::string which =
      shown < plan.schedule.micro_batches ? fmt::format("drawn with {} micro-batches, ", shown) : "";
  return fmt::format("\npipeline: {}{:.1f} % of a step is idle\n{}", which, 100 * plan.timeline.bubble,
                     draw(part, simulate(part, forward, backward)));
}

}  // namespace

std::string print(const Plan& plan) {
  const ModelConfig& m = plan.config.model;
  return fmt::format("model     {:.4g} million parameters, {} layers, {} mixers\n",
                     1e-6 * static_cast<double>(parameter_count(m)), m.num_layers, m.num_mixers()) +
         mesh(plan) + machine(plan) + stages(plan) + context(plan) + memory(plan) + step(plan) +
         pipeline(plan);
}

}  // namespace transmamba
