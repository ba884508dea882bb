// Training on a mesh: the model's part of this rank, its pipeline schedule, the gradients' buckets and the
// optimizer, as one thing that takes steps.
#pragma once

#include <functional>
#include <limits>
#include <memory>
#include <string>

#include "core/config.h"
#include "parallel/data/gradient_buckets.h"
#include "parallel/micro_batch.h"
#include "parallel/optimizer.h"
#include "parallel/pipeline/executor.h"

namespace transmamba {

/// What a rank tells all others in a step; what one says counts for all.
struct StepFlags {
  bool stops = false;        ///< this step is to be the last
  bool is_saving = false;    ///< this rank's part of a save is under way
  bool save_failed = false;  ///< .. has failed
};

struct StepOptions {
  /// Asked once, behind the backward pass. What it says reaches all ranks with the loss, and so costs
  /// nothing.
  std::function<StepFlags()> flags = {};
  /// A step with a larger loss changes nothing. Where it is finite the host waits for the loss.
  double largest_loss = std::numeric_limits<double>::infinity();
  const gpu::Event* after = nullptr;  ///< on a GPU: no value or moment changes before it
  bool spoils = false;                ///< for tests: this rank makes a gradient not finite
};

struct StepResult {
  double loss = 0;       ///< mean over the step's tokens, in nats, before the update
  double grad_norm = 0;  ///< before clipping
  double lr = 0;
  bool skipped = false;  ///< loss or norm not finite, or too large: parameters and moments are as they were
  StepFlags flags = {};  ///< those of all ranks
};

class Engine {
 public:
  /// All ranks of the placement's mesh make an engine of the same configuration, whose parallel degrees are
  /// resolved (parallel/degrees.h). Parameters are not initialised.
  Engine(const Config& config, Placement placement, const Context& context);
  /// Parameters, as train.seed draws them.
  void initialise();

  /// Adds up the gradients of all micro-batches of all ranks. Gives the loss and the gradient norm of the
  /// whole step; then this rank's owned parts of the gradients are theirs. Throws Error if either is not
  /// finite.
  StepResult gradients(std::int64_t step, const Batches& batches);
  /// Step `step` (from 0): gradients, clipping, AdamW. Waits for the device once, at its end. After an Error
  /// parameters and moments are as they were.
  StepResult step(std::int64_t step, const Batches& batches, const StepOptions& options = {});
  /// After a step that was skipped, what of this rank was not finite; "" for nothing: its part of the loss,
  /// and of the gradients that it owns, summed over data ranks, the first (the backward pass goes from the
  /// last parameter to the first) and how many more.
  std::string not_finite() const;
  /// Sum over all ranks of the token losses, in nats, of each data replica's own `micro_batches`, which may
  /// be none.
  using Observer = decltype(RunOptions::observe);
  double evaluate(std::int64_t micro_batches, const Batches& batches, const Observer& observe = {});
  /// Waits until all values are as the last step left them.
  void finish() { buckets_.finish_gather(); }

  std::int64_t micro_batches() const { return schedule_.micro_batches; }  ///< of each data replica and step
  const Mesh& mesh() const { return *model_.placement().mesh; }
  Model& model() { return model_; }
  const Model& model() const { return model_; }
  Optimizer& optimizer() { return optimizer_; }
  const Optimizer& optimizer() const { return optimizer_; }
  const Schedule& schedule() const { return schedule_; }
  const MicroBatch* micro_batch() const { return micro_batch_.get(); }  ///< null where none are captured

 private:
  void open_ways();  // between ranks
  Config config_;
  Context context_;
  Model model_;
  Schedule schedule_;
  GradientBuckets buckets_;
  Optimizer optimizer_;
  Tensor sums_;  // (5) float64, on the device: loss, squared gradient norm, how many ranks raise each flag
  Tensor own_loss_;                          // (1) float64, of this rank
  std::unique_ptr<MicroBatch> micro_batch_;  // of one rank on a GPU
  bool warm_ = false;                        // a step was taken

  double tokens() const;  // of a step
  void add_gradients(const Batches& batches, const StepOptions& options = {});
  StepResult read() const;
};

}  // namespace transmamba
