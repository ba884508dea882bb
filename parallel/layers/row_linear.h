// output = residual + x W^T with the columns of W (and of x) shared out over tp ranks.
#pragma once

#include "core/parameter.h"
#include "parallel/layers/token_shard.h"

namespace transmamba {

/// x: all tokens and this rank's columns (tokens, in / tp); residual, output: each rank's run of tokens
/// (rows, out).
class RowLinear {
 public:
  RowLinear() = default;
  RowLinear(Pack weight, Communicator& tp) : weight_(weight), tp_(&tp) {}

  /// output = residual + reduce_scatter(x W^T); `output` may be `residual`.
  void forward(const Context& context, ConstView x, ConstView residual, View output) const;
  /// dx = gather(doutput) W, overwritten; dW += gather(doutput)^T x.
  void backward(const Context& context, const Tensor& doutput, ConstView x, View dx) const;

 private:
  Pack weight_;
  Communicator* tp_ = nullptr;
};

}  // namespace transmamba
