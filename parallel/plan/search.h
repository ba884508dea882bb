// The mesh that a plan predicts to be the fastest.
#pragma once

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

/// Tries every tp (within a host), cp, pp and dp whose product is the number of ranks. A searcher is for one
/// model, length and machine: it keeps the layouts that it has made.
class MeshSearch {
 public:
  MeshSearch(const Machine& machine, SearchBounds bounds) : machine_(machine), bounds_(bounds) {}
  /// The fastest plan of `config` on `ranks` ranks, whatever config.parallel's degrees; of equally fast ones
  /// that with the least tp, then pp, then cp. Nothing where none is possible and fits: `problem` then says
  /// why the last one that was tried was not.
  std::optional<Plan> fastest(const Config& config, int ranks, std::string& problem);

 private:
  const ContextLayout& layout(const Config& config);
  const Machine& machine_;
  SearchBounds bounds_;
  std::map<std::pair<std::int64_t, std::int64_t>, ContextLayout> layouts_;  // by length and cp
};

}  // namespace transmamba
