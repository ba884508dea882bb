// y = x W^T and its gradients, for x (b, t, in) and W (out, in).
#pragma once

#include "core/parameter.h"
#include "core/tensor.h"

namespace transmamba {

class Linear {
 public:
  Linear() = default;
  /// All of `weights` (a pack of (out_i, in) matrices) are applied in one product; out is the sum of out_i.
  explicit Linear(Pack weights) : weights_(weights) {}

  /// y (b, t, out) is overwritten, or added to with `accumulate`: that is how a residual is added for free.
  void forward(const Context& context, ConstView x, View y, bool accumulate = false) const;
  /// dx (b, t, in) is overwritten; the weights' gradients are added to.
  void backward(const Context& context, ConstView dy, ConstView x, View dx) const;

 private:
  Pack weights_;
};

}  // namespace transmamba
