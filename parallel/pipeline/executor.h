// Runs a pipeline schedule: what this rank's row of the table says, with the transfers that it implies.
#pragma once

#include <cstdint>
#include <functional>

#include "parallel/model.h"
#include "parallel/pipeline/schedule.h"

namespace transmamba {

/// Next-token prediction: targets[b, t] follows tokens[b, t]. Both (b, T) int32, whole sequences, in host
/// memory (Context::empty_host).
struct Batch {
  Tensor tokens, targets;
};

/// The micro-batches of this rank's data replica, asked for by number. All its ranks get the same ones.
using Batches = std::function<Batch(std::int64_t micro_batch)>;

/// What a run of a schedule is for. Defaults: losses only.
struct RunOptions {
  double scale = 0;                   ///< adds the gradients of scale * (sum of the token losses)
  ParameterEvents* events = nullptr;  ///< told which gradients are complete
  /// Sees what each forward pass gave (logits at the last stage) and kept, states included.
  std::function<void(const Action&, const Tensor& output, const Model::Saved&)> observe = {};
  /// Kernels may be called for the first time, or with new shapes: then the driver may wait for all that the
  /// GPU has begun, and a message that is awaited there must not be one that this rank has yet to make
  /// possible. So nothing is received before all that comes before it is sent.
  bool is_first = false;
};

/// A collective call on the mesh's pp axis, before the first schedule is run: its lanes. `message_bytes`: of
/// the largest activations between stages, where copy engines may carry them (Lane).
void open_transfers(const Mesh& mesh, std::int64_t message_bytes);

/// Runs `schedule` (of the model's pp and chunks). loss (1) float64, on the device, += the sum of the token
/// losses, in nats, of the tokens of which this rank is the one that counts: tp rank 0 of the last stage's.
void run_schedule(const Context& context, const Model& model, const Schedule& schedule,
                  const Batches& batches, const View& loss, const RunOptions& options = {});

}  // namespace transmamba
