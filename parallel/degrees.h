// How many ways the work is shared, checked against the model, the batch and the number of ranks.
#pragma once

#include <cstdint>

#include "core/config.h"

namespace transmamba {

/// config.parallel with dp filled in for `ranks` ranks. Throws Error, with the numbers that would work, where
///  - tp cp pp does not divide the ranks, or tp cp pp with a given dp is not their number;
///  - tp does not divide num_heads or ffn_hidden_size (where there is an MLP);
///  - seq_len cannot be dealt to cp ranks as parallel.cp_layout asks (parallel/context/layout.h);
///  - there are more stages (pp virtual_stages) than layers, or virtual stages without a pipeline;
///  - micro_batch dp does not divide global_batch, or an interleaved schedule gets micro-batches that are no
///    multiple of pp.
ParallelConfig resolve_parallel(const Config& config, int ranks);

/// The first of these alone.
void check_mesh(const ParallelConfig& degrees, std::int64_t ranks);

/// Micro-batches that each pipeline runs a step, of a resolved configuration.
std::int64_t micro_batches(const Config& config, const ParallelConfig& resolved);

}  // namespace transmamba
