// SwiGLU MLP: down(SiLU(gate(u)) * up(u)), its f columns shared out over tp ranks.
#pragma once

#include "core/config.h"
#include "parallel/layers/column_linear.h"
#include "parallel/layers/row_linear.h"

namespace transmamba {

class Mlp {
 public:
  struct Saved {
    Tensor u, gate_up, hidden;
  };

  /// Declares `<prefix>gate_proj.weight` and the other parameters.
  Mlp(const ModelConfig& config, const std::string& prefix, Communicator& tp, ParameterStore& store);

  /// output = residual + mlp(u), all (rows, d), this rank's rows of `tokens` tokens (TokenShard). `output`
  /// may be `residual`.
  void forward(const Context& context, const Tensor& u, std::int64_t tokens, ConstView residual, View output,
               Saved& saved) const;
  /// From dout, the gradient of the layer's output, to that of u.
  Tensor backward(const Context& context, const Tensor& dout, Saved& saved) const;

 private:
  std::int64_t ffn_;  // of this rank
  ColumnLinear gate_up_;
  RowLinear down_;
};

}  // namespace transmamba
