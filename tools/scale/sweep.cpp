#include "tools/scale/sweep.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "core/cost_model.h"
#include "core/metrics.h"
#include "parallel/degrees.h"

namespace transmamba {
namespace {

constexpr auto kWhere = "scale";

/// One rank is the same of all series; beyond, an axis takes all ranks, or a mesh is filled up by dp.
ParallelConfig degrees(const ScaleSeries& series, int ranks, ParallelConfig p) {
  p.tp = series.tp, p.cp = series.cp, p.pp = series.pp, p.dp = 0;
  if (ranks == 1) p.tp = p.cp = p.pp = 1;
  if (series.axis == "tp") p.tp = ranks;
  if (series.axis == "cp") p.cp = ranks;
  if (series.axis == "pp") p.pp = ranks;
  if (p.pp == 1) p.virtual_stages = 1;
  return p;
}

/// Weak scaling gives each rank the work that it has on the fewest.
void grow(std::int64_t& what, int ranks, int fewest, const char* key) {
  check(what * ranks % fewest == 0, kWhere, "weak scaling: {} = {} x {} / {} is no whole number", key, what,
        ranks, fewest);
  what = what * ranks / fewest;
}

/// A short run that says what it does in files and leaves nothing else.
void make_short(Config& c, const ScaleOptions& o) {
  c.train.steps = o.steps;
  c.train.validate_every = 0;
  c.train.validate_sequences = 1;
  c.data.validation_path.clear();
  c.checkpoint = {};
  c.optimizer.warmup_steps = std::min(c.optimizer.warmup_steps, o.steps);
  c.log.every = 1, c.log.profile = 0, c.log.profile_path.clear();
  c.log.communication_skip = o.warmup;
}

double physical_memory() {
  return static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
}

void check_memory_of(const ScaleRun& run, const ScaleOptions& o) {
  double limit = o.memory_gib * (1 << 30);
  if (limit == 0 && run.config.train.device == "cpu") limit = physical_memory();
  check(limit == 0 || run.predicted->memory_most <= limit, "memory",
        "planned to need {} a rank, which has {}",
        format_bytes(static_cast<std::int64_t>(run.predicted->memory_most)),
        format_bytes(static_cast<std::int64_t>(limit)));
}

ScaleRun make_run(const ScaleOptions& o, const ScaleSize& size, const std::string& mode,
                  const ScaleSeries& series, int ranks) {
  ScaleRun run;
  run.size = size.name, run.ranks = ranks, run.config = size.config;
  Config& c = run.config;
  c.parallel = degrees(series, ranks, c.parallel);
  make_short(c, o);
  try {
    if (mode == "weak") {
      if (series.axis == "cp")
        grow(c.train.seq_len, ranks, o.ranks.front(), "train.seq_len");
      else
        grow(c.train.global_batch, ranks, o.ranks.front(), "train.global_batch");
    }
    run.flops = training_flops(c.model, c.train.seq_len, c.train.global_batch);
    c.parallel = resolve_parallel(c, ranks);
    c.validate();
    const Machine machine = machine_of(c);
    const Plan plan = make_plan(c, ranks, machine, plan_layout(c, machine));
    run.predicted = prediction_of(plan.step, plan.memory);
    check_memory_of(run, o);
  } catch (const Error& error) {
    run.impossible = error.what();
  }
  const ParallelConfig& p = c.parallel;
  run.name = fmt::format("{}-r{}-tp{}-cp{}-pp{}-b{}-t{}", size.name, ranks, p.tp, p.cp, p.pp,
                         c.train.global_batch, c.train.seq_len);
  return run;
}

}  // namespace

Prediction prediction_of(const StepTime& step, const std::vector<Memory>& pipeline) {
  Prediction p{step, pipeline.front().total(), 0};
  for (const Memory& memory : pipeline) p.memory_most = std::max(p.memory_most, memory.total());
  return p;
}

std::optional<Spread> ScaleRun::measured(std::int64_t warmup) const {
  std::vector<double> all;
  for (const Round& round : rounds)
    for (std::size_t i = static_cast<std::size_t>(warmup); i < round.seconds.size(); ++i)
      all.push_back(round.seconds[i]);
  if (all.empty()) return {};
  std::sort(all.begin(), all.end());
  const std::size_t half = all.size() / 2;
  const double median = all.size() % 2 == 1 ? all[half] : (all[half - 1] + all[half]) / 2;
  return Spread{median, all.front(), all.back()};
}

std::map<std::string, double> ScaleRun::exposed() const {
  std::map<std::string, double> mean;
  for (const Round& round : rounds)
    for (const auto& [axis, seconds] : round.exposed)
      mean[axis] += seconds / static_cast<double>(rounds.size());
  return mean;
}

double ScaleRun::memory_bytes() const {
  double most = 0;
  for (const Round& round : rounds) most = std::max(most, round.memory_bytes);
  return most;
}

Sweep make_sweep(const ScaleOptions& o, const std::vector<ScaleSize>& sizes,
                 const std::filesystem::path& files) {
  Sweep sweep;
  sweep.warmup = o.warmup;
  for (const ScaleSize& size : sizes)
    for (const std::string& mode : o.modes)
      for (const ScaleSeries& series : o.series)
        for (const int ranks : o.ranks) {
          ScaleRun run = make_run(o, size, mode, series, ranks);
          std::size_t at = 0;
          while (at < sweep.runs.size() &&
                 (sweep.runs[at].name != run.name || sweep.runs[at].impossible != run.impossible))
            ++at;
          if (at == sweep.runs.size()) {
            const std::filesystem::path folder = files / run.name;
            run.config.log.metrics = folder / "metrics.jsonl";
            run.config.log.communication = folder / "communication.json";
            sweep.runs.push_back(std::move(run));
          }
          sweep.points.push_back({size.name, mode, series.name, at});
        }
  return sweep;
}

const ScaleRun* baseline(const Sweep& sweep, const ScalePoint& point, bool measured) {
  for (const ScalePoint& other : sweep.points) {
    if (other.size != point.size || other.mode != point.mode || other.series != point.series) continue;
    const ScaleRun& run = sweep.runs[other.run];
    if (measured ? run.measured(sweep.warmup).has_value()
                 : run.predicted.has_value() && run.impossible.empty())
      return &run;
  }
  return nullptr;
}

double efficiency(double flops, double seconds, int ranks, double base_flops, double base_seconds,
                  int base_ranks) {
  return flops / seconds / ranks / (base_flops / base_seconds / base_ranks);
}

std::optional<double> measured_efficiency(const Sweep& sweep, const ScalePoint& point) {
  const ScaleRun &run = sweep.runs[point.run], *base = baseline(sweep, point, true);
  const auto mine = run.measured(sweep.warmup);
  if (!mine || !base) return {};
  return efficiency(run.flops, mine->median, run.ranks, base->flops, base->measured(sweep.warmup)->median,
                    base->ranks);
}

std::optional<double> predicted_efficiency(const Sweep& sweep, const ScalePoint& point) {
  const ScaleRun &run = sweep.runs[point.run], *base = baseline(sweep, point, false);
  if (!run.predicted || !run.impossible.empty() || !base) return {};
  return efficiency(run.flops, run.predicted->step.total(), run.ranks, base->flops,
                    base->predicted->step.total(), base->ranks);
}

std::map<std::string, double> predicted_exposed(const StepTime& step) {
  return {{"tp", step.tp}, {"cp", step.cp}, {"pp", step.pp}, {"dp", step.dp}};
}

}  // namespace transmamba
