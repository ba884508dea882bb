// Which part of the model a rank runs: the mesh, the layers of every stage, the tokens of every cp rank.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "core/config.h"
#include "core/machine.h"
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

/// Machine that `config` asks for: parallel.machine's file, or what is built in for train.device. All ranks
/// must read the same numbers, or they would balance differently.
Machine machine_of(const Config& config);

/// Segments of each cp rank, by parallel.cp_layout and parallel.cp_chunk.
ContextLayout plan_layout(const Config& config, const Machine& machine);
/// Layers of each of pp * virtual_stages virtual stages (stage s on rank s % pp), by what layers, embedding
/// and head take on the busiest rank of `layout`, for a short step. `config.parallel` is resolved.
std::vector<Stage> plan_stages(const Config& config, const Machine& machine, const ContextLayout& layout);

/// The context rank, if there is one, that leaves the gradient of the head's weights to the end of its
/// backward pass, as those before it wait for its states, layer by layer, and it for nobody: it has the
/// sequence's last tokens and needs no keys of others. Only where nobody waits for that gradient either: not
/// the stage before, nor the reduce-scatter, which tied embeddings keep for the end, nor transfers that
/// would run beside it. Not on CPUs, where no rank is ahead.
std::optional<std::size_t> late_head_rank(const ModelConfig& model, const ContextLayout& layout,
                                          std::span<const std::int64_t> transpoints, std::int64_t tp,
                                          std::int64_t pp, bool on_gpu);

/// Both, for a resolved configuration with the degrees of `mesh`.
Placement place(const Config& config, const Mesh& mesh);

}  // namespace transmamba
