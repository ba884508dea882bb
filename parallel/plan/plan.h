// What a run will look like before it runs: who holds which tokens and layers, in which order micro-batches
// pass, how much memory that takes, and how long a step. Layout and stages are those that training takes
// (parallel/placement.h), so what `transmamba plan` shows is what happens.
#pragma once

#include <string>
#include <vector>

#include "parallel/pipeline/schedule.h"
#include "parallel/placement.h"
#include "parallel/plan/step_time.h"

namespace transmamba {

/// Bytes on one rank. What the allocator keeps for reuse beside them, and the program itself, come on top.
struct Memory {
  double parameters = 0;   ///< values of the rank's layers, cut over tp
  double gradients = 0;    ///< as many, of type S
  double optimizer = 0;    ///< two moments, and master weights of rounded values, cut over dp and cp
  double activations = 0;  ///< what forward passes keep (the Saved structs) of the micro-batches in flight
  double working = 0;      ///< what a backward pass adds at its peak, transfers between stages, sums' window
  double workspaces = 0;   ///< what kernels on a GPU add to that peak (kernels/workspace.h)
  double total() const { return parameters + gradients + optimizer + activations + working + workspaces; }
};

/// One way to deal the sequence, for comparison.
struct LayoutChoice {
  std::string name;
  std::string problem;       ///< why it cannot be used; empty: it can
  std::size_t segments = 0;  ///< of the rank with most
  double imbalance = 1;      ///< busiest rank's cost over the mean, all layers together
  double waiting = 1;        ///< of the slowest rank over the mean, with what ranks wait for each other
};

/// Seconds of a step; they add up to total().
struct StepTime {
  double compute = 0;     ///< mean over pipeline ranks
  double tp = 0, cp = 0;  ///< their communication, likewise
  double pp = 0;          ///< the bubble: waiting for other stages, and transfers
  double dp = 0;          ///< reduce-scatter and all-gather that backward and forward passes do not cover
  double optimizer = 0;
  double total() const { return compute + tp + cp + pp + dp + optimizer; }
};

struct Plan {
  Config config;  ///< with parallel resolved
  int ranks = 1;
  Machine machine;
  std::vector<std::int64_t> transpoints;  ///< one a mixer
  ContextLayout layout;
  std::vector<double> rank_cost;      ///< seconds of a sequence, forward and backward, on each cp rank
  std::vector<LayoutChoice> layouts;  ///< all four, where cp > 1
  std::vector<Stage> stages;
  std::vector<LayerTime> stage_times;  ///< of one micro-batch
  Schedule schedule;
  Timeline timeline;
  std::vector<Memory> memory;  ///< of each pipeline rank
  StepTime step;
  double tokens_per_second = 0;
};

/// Throws the Errors of resolve_parallel, and one where model.vocab_size is 0: no data file is read here.
Plan make_plan(const Config& config, int ranks, const Machine& machine);
/// The same for a `layout` that is known already, without what compares ranks and layouts: quick.
Plan make_plan(const Config& config, int ranks, const Machine& machine, const ContextLayout& layout);
/// The same for `stages` that are known, too, and `config` with parallel resolved.
Plan make_plan(const Config& config, const Machine& machine, const ContextLayout& layout,
               const std::vector<Stage>& stages);

/// For people.
std::string print(const Plan& plan);

/// Of the pipeline ranks, with the formulas beside the code. `config.parallel` is resolved.
std::vector<Memory> predict_memory(const Config& config, const std::vector<std::int64_t>& transpoints,
                                   const ContextLayout& layout, const std::vector<Stage>& stages,
                                   const Schedule& schedule);
/// Parameters that one rank holds of a stage.
double stage_parameters(const Config& config, const Stage& stage);

}  // namespace transmamba
