// Micro-batches of one rank on a GPU: all are the same work on other tokens, so it is captured once and then
// enqueued at once, where kernel by kernel the host would be slower than the GPU.
#pragma once

#include <memory>

#include "parallel/model.h"
#include "parallel/pipeline/executor.h"

namespace transmamba {

class MicroBatch {
 public:
  /// Of a whole model on one rank. `loss` (1) float64 on the device += the sum of the token losses; gradients
  /// are those of `scale` times it. The model, and what `context` and `loss` point at, must outlive this.
  MicroBatch(const Context& context, const Model& model, const View& loss, double scale);

  /// Enqueues one micro-batch; all have the shape of the first. The first call runs kernel by kernel, which
  /// also makes their choices; the second captures. A call where other tensors are in use than at the
  /// capture, so that the captured addresses may be theirs, runs kernel by kernel too; where that happens
  /// several times in a row, the next one captures anew.
  /// In a step that is profiled all run kernel by kernel, for regions inside a graph cannot be timed.
  void run(std::int64_t number, const Batch& batch);
  /// How many calls enqueued a graph, of all.
  std::int64_t replays() const { return replays_; }
  std::int64_t runs() const { return runs_; }

 private:
  void enqueue(std::int64_t number) const;
  Context context_;
  const Model& model_;
  View loss_;
  double scale_;
  Tensor tokens_, targets_;  // where the graph reads them
  std::unique_ptr<gpu::Graph> graph_;
  std::uint64_t fingerprint_ = 0;  // of the memory in use when it was captured
  std::int64_t runs_ = 0, replays_ = 0;
  int mismatches_ = 0;  // in a row
  int patience_ = 3;    // with them
};

}  // namespace transmamba
