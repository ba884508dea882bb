// y = x W^T with the rows of W (the columns of y) shared out over tp ranks.
#pragma once

#include "core/parameter.h"
#include "parallel/layers/token_shard.h"

namespace transmamba {

/// x: each rank's run of tokens (rows, in); y: all tokens and this rank's columns (tokens, out / tp).
class ColumnLinear {
 public:
  ColumnLinear() = default;
  /// All of `weights` (a pack of (out_i / tp, in) matrices) are applied in one product.
  ColumnLinear(Pack weights, Communicator& tp) : weights_(weights), tp_(&tp) {}

  /// y = gather(x) W^T.
  void forward(const Context& context, const Tensor& x, View y) const;
  /// dx = reduce_scatter(dy W); dW += dy^T gather(x). The gather is made again rather than kept. dx is a new
  /// tensor (rows, in).
  Tensor backward(const Context& context, ConstView dy, const Tensor& x) const;
  /// The same in two calls, for whoever has others wait for dx: dx, of the shape of x, then dW.
  Tensor input_gradient(const Context& context, ConstView dy, const Shape& x) const;
  void add_weight_gradient(const Context& context, ConstView dy, const Tensor& x) const;

 private:
  void start_input_gradient(const Context& context, ConstView dy, ScatterTokens& sums) const;
  void add_weight_gradient(const Context& context, ConstView dy, GatherTokens& x) const;
  Pack weights_;
  Communicator* tp_ = nullptr;
};

}  // namespace transmamba
