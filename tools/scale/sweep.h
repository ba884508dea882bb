// The runs of a scaling experiment: what is trained on how many ranks, what the plan predicts of it, and
// what was measured.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "parallel/plan/plan.h"
#include "tools/scale/options.h"

namespace transmamba {

/// What is kept of a plan.
struct Prediction {
  StepTime step;
  double memory_rank0 = 0;  ///< bytes, of rank 0, whose memory is measured
  double memory_most = 0;   ///< of the fullest rank
};
Prediction prediction_of(const StepTime& step, const std::vector<Memory>& memory);

/// One training run, as its metrics file and its table of communication say.
struct Round {
  std::vector<double> seconds;            ///< of each step, those of the warm-up too
  double memory_bytes = 0;                ///< of rank 0
  std::map<std::string, double> exposed;  ///< seconds a step that a rank waited, by axis, without the warm-up
};

/// Median, least and most.
struct Spread {
  double median = 0, least = 0, most = 0;
};

/// One configuration on so many ranks.
struct ScaleRun {
  std::string name;  ///< of its folder
  std::string size;
  int ranks = 1;
  Config config;           ///< what is trained, parallel resolved
  double flops = 0;        ///< of the model, a step
  std::string impossible;  ///< why it cannot be run; empty: it can
  std::optional<Prediction> predicted;
  std::vector<Round> rounds;
  std::string failure;  ///< of the round that failed last; empty: none did

  double tokens() const { return static_cast<double>(config.train.global_batch * config.train.seq_len); }
  /// Step seconds of all rounds without `warmup` steps each; nothing where there are none.
  std::optional<Spread> measured(std::int64_t warmup) const;
  /// Means over rounds.
  std::map<std::string, double> exposed() const;
  double memory_bytes() const;  ///< the most
};

/// A run as a point of a series. Several may be one run: on one rank all series are the same.
struct ScalePoint {
  std::string size, mode, series;
  std::size_t run = 0;
};

struct Sweep {
  std::int64_t warmup = 0;
  std::vector<ScaleRun> runs;
  std::vector<ScalePoint> points;  ///< by size, mode and series, ranks ascending
};

/// Strong and weak scaling of each size along each series. `files` is the folder that gets one of each run.
Sweep make_sweep(const ScaleOptions& options, const std::vector<ScaleSize>& sizes,
                 const std::filesystem::path& files);

/// The run that a point's efficiency is relative to: the first of its series that has been measured, or
/// predicted. Null where none has.
const ScaleRun* baseline(const Sweep& sweep, const ScalePoint& point, bool measured);

/// How much of the work of `ranks` / `base_ranks` times the base's devices is done: the rate of a run over
/// the rate of the base, by rank. A rate is the model's FLOPs a second, so that a longer sequence counts as
/// what it costs; where lengths are the same that is tokens a second.
double efficiency(double flops, double seconds, int ranks, double base_flops, double base_seconds,
                  int base_ranks);
std::optional<double> measured_efficiency(const Sweep& sweep, const ScalePoint& point);
std::optional<double> predicted_efficiency(const Sweep& sweep, const ScalePoint& point);

/// Sum of what communication a prediction counts, by the names of axes: tp, cp, pp, dp.
std::map<std::string, double> predicted_exposed(const StepTime& step);

}  // namespace transmamba
