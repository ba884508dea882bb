// Data parallelism: ranks that hold the same parameters sum their gradients and share the optimizer's state
// (ZeRO-1; Rajbhandari et al., 2020). Each bucket of gradients is reduce-scattered as soon as the backward
// pass has completed it, beside the rest of the backward pass; each bucket of new values is gathered beside
// the next forward pass, until a layer needs it.
#pragma once

#include <vector>

#include "parallel/model.h"

namespace transmamba {

class GradientBuckets : public ParameterEvents {
 public:
  /// Listens to `model`, which must outlive it.
  explicit GradientBuckets(Model& model);
  ~GradientBuckets() override;
  GradientBuckets(const GradientBuckets&) = delete;
  GradientBuckets& operator=(const GradientBuckets&) = delete;

  /// Before the backward passes of a step: zeroes the gradients.
  void start(const Context& context);
  /// From the last backward pass of each chunk.
  void complete(std::size_t first, std::size_t last) override;
  /// After them: then this rank's own part of every bucket of gradients (ParameterStore::owned) is the sum
  /// over all ranks. The rest of the gradients is undefined.
  void finish();

  /// After the optimizer has changed this rank's parts of the values: starts to gather the others'.
  void start_gather();
  void needed(std::size_t first, std::size_t last) override;
  void finish_gather();

 private:
  Model& model_;
  const Mesh& mesh_;
  std::vector<std::size_t> incomplete_;  // of each bucket: parameters whose gradients are not complete
  std::vector<bool> started_;
  std::vector<Pending> gradients_, values_;
  View part(const View& of_bucket) const;  // this rank's
  void reduce(std::size_t bucket);
};

}  // namespace transmamba
