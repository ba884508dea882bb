#include "parallel/layers/mlp.h"

#include "kernels/swiglu.h"

namespace transmamba {

Mlp::Mlp(const ModelConfig& c, const std::string& prefix, ParameterStore& store) : ffn_(c.ffn_hidden_size) {
  const Init in = Init::normal(c.init_std), out = Init::normal(c.output_init_std());
  const std::int64_t d = c.hidden_size, f = ffn_;
  gate_up_ = Linear(store.add(
      {{prefix + "gate_proj.weight", {{f, d}}, in, true}, {prefix + "up_proj.weight", {{f, d}}, in, true}}));
  down_ = Linear(store.add({{prefix + "down_proj.weight", {{d, f}}, out, true}}));
}

void Mlp::forward(const Context& context, const Tensor& u, View residual, Saved& saved) const {
  const std::int64_t b = u.dim(0), t = u.dim(1);
  saved.u = u;
  saved.gate_up = context.empty({b, t, 2 * ffn_});
  saved.hidden = context.empty({b, t, ffn_});
  gate_up_.forward(context, u, saved.gate_up);
  swiglu({.gate_up = saved.gate_up, .y = saved.hidden}, context.stream);
  down_.forward(context, saved.hidden, residual, /*accumulate=*/true);
}

void Mlp::backward(const Context& context, ConstView dout, View du, Saved& saved) const {
  const Tensor dhidden = context.empty(saved.hidden.shape());
  down_.backward(context, dout, saved.hidden, dhidden);
  swiglu_backward({.dy = dhidden, .gate_up = saved.gate_up, .dgate_up = saved.gate_up}, context.stream);
  gate_up_.backward(context, saved.gate_up, saved.u, du);
}

}  // namespace transmamba
