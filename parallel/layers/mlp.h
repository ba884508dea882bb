// SwiGLU MLP: down(SiLU(gate(u)) * up(u)), its f columns shared out over tp ranks.
#pragma once

#include "core/config.h"
#include "core/recompute.h"
#include "parallel/layers/column_linear.h"
#include "parallel/layers/row_linear.h"

namespace transmamba {

class Mlp {
 public:
  struct Saved {
    Tensor gate_up;  // (1, tokens, 2f)
    Tensor hidden;   // (1, tokens, f)

    /// Drops what backward() is to compute again.
    void drop(Recompute recompute);
  };

  /// Declares `<prefix>gate_proj.weight` and the other parameters.
  Mlp(const ModelConfig& config, const std::string& prefix, Communicator& tp, ParameterStore& store);

  /// output = residual + mlp(u), all (rows, d), this rank's rows of `tokens` tokens (TokenShard). `output`
  /// may be `residual`.
  void forward(const Context& context, const Tensor& u, std::int64_t tokens, ConstView residual, View output,
               Saved& saved) const;
  /// Of forward() all but the product that gives the output: what backward() wants kept.
  void expand(const Context& context, const Tensor& u, std::int64_t tokens, Saved& saved) const;
  /// From dout, the gradient of the layer's output, to that of u. Frees `saved` on its way.
  Tensor backward(const Context& context, const Tensor& u, const Tensor& dout, Saved& saved) const;

 private:
  std::int64_t ffn_;  // of this rank
  ColumnLinear gate_up_;
  RowLinear down_;

  void activate(const Context& context, Saved& saved) const;
};

}  // namespace transmamba
