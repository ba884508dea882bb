// SwiGLU MLP: down(SiLU(gate(u)) * up(u)).
#pragma once

#include "core/config.h"
#include "parallel/layers/linear.h"

namespace transmamba {

class Mlp {
 public:
  struct Saved {
    Tensor u, gate_up, hidden;
  };

  /// Declares `<prefix>gate_proj.weight` and the other parameters.
  Mlp(const ModelConfig& config, const std::string& prefix, ParameterStore& store);

  /// residual (b, t, d) += mlp(u), u (b, t, d).
  void forward(const Context& context, const Tensor& u, View residual, Saved& saved) const;
  /// From dout, the gradient of the layer's output, to du (overwritten).
  void backward(const Context& context, ConstView dout, View du, Saved& saved) const;

 private:
  std::int64_t ffn_;
  Linear gate_up_, down_;
};

}  // namespace transmamba
