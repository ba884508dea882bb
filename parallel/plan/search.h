// The mesh that a plan predicts to be the fastest.
#pragma once

#include <array>
#include <map>
#include <optional>
#include <string>

#include "parallel/plan/plan.h"

namespace transmamba {

/// How far a search goes.
struct SearchBounds {
  double memory_bytes = 0;  ///< of a rank; 0: any plan fits
  std::int64_t most_cp = 64, most_pp = 16;
};

/// What is kept of a mesh's plan.
struct MeshChoice {
  ParallelConfig parallel;  ///< resolved
  StepTime step;
  std::vector<Memory> memory;  ///< of each pipeline rank
};

/// The plan of `config` (parallel resolved). Of a step with many micro-batches, only some are put in a
/// schedule: past its warm-up a pipeline repeats itself, so that the rest of its time follows.
MeshChoice plan_quickly(const Config& config, const Machine& machine, const ContextLayout& layout);

/// Tries every tp (within a host), cp, pp and dp whose product is the number of ranks. A searcher is for one
/// model, length and machine: it keeps the layouts that it has made.
class MeshSearch {
 public:
  MeshSearch(const Machine& machine, SearchBounds bounds) : machine_(machine), bounds_(bounds) {}
  /// The fastest mesh for `config` on `ranks` ranks, whatever config.parallel's degrees; of equally fast ones
  /// that with the least tp, then pp, then cp. Nothing where none is possible and fits: `problem` then says
  /// why the last one that was tried was not.
  std::optional<MeshChoice> fastest(const Config& config, int ranks, std::string& problem);

 private:
  const ContextLayout& layout(const Config& config);
  const Machine& machine_;
  SearchBounds bounds_;
  std::map<std::array<std::int64_t, 3>, ContextLayout> layouts_;  // by length, cp and tp
};

}  // namespace transmamba
