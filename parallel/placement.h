// Which part of the model a rank runs: the mesh, the layers of every stage, the tokens of every cp rank.
#pragma once

#include <vector>

#include "core/config.h"
#include "parallel/context/layout.h"
#include "parallel/mesh.h"
#include "parallel/pipeline/partition.h"
#include "parallel/pipeline/schedule.h"

namespace transmamba {

/// Stage s of `stages` is chunk s / pp of pipeline rank s % pp.
struct Placement {
  const Mesh* mesh = nullptr;
  std::vector<Stage> stages;
  ContextLayout layout;  ///< empty on a cp axis of one rank: then a sequence of any length is one segment

  int chunks() const { return static_cast<int>(stages.size()) / mesh->pp().size(); }
  const Stage& chunk(int i) const {
    return stages[static_cast<std::size_t>(stage_of(i, mesh->pp().rank(), mesh->pp().size()))];
  }
};

/// As the plan of this configuration has it (parallel/plan.h), its degrees resolved and those of `mesh`.
Placement place(const Config& config, const Mesh& mesh);

}  // namespace transmamba
