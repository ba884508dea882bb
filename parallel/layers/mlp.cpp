#include "parallel/layers/mlp.h"

#include <utility>

#include "kernels/swiglu.h"

namespace transmamba {

Mlp::Mlp(const ModelConfig& c, const std::string& prefix, Communicator& tp, ParameterStore& store)
    : ffn_(c.ffn_hidden_size / tp.size()) {
  const Init in = Init::normal(c.init_std), out = Init::normal(c.output_init_std());
  const std::int64_t d = c.hidden_size, f = c.ffn_hidden_size;
  const ShardSpec column{{f, d}, 0, tp.size(), tp.rank()}, row{{d, f}, 1, tp.size(), tp.rank()};
  gate_up_ = ColumnLinear(store.add({{prefix + "gate_proj.weight", column, in, true},
                                     {prefix + "up_proj.weight", column, in, true}}),
                          tp);
  down_ = RowLinear(store.add({{prefix + "down_proj.weight", row, out, true}}), tp);
}

void Mlp::Saved::drop(Recompute recompute) {
  if (recompute != Recompute::none) hidden = Tensor();
  if (recompute == Recompute::full) gate_up = Tensor();
}

void Mlp::activate(const Context& context, Saved& saved) const {
  saved.hidden = context.empty({1, saved.gate_up.dim(1), ffn_});
  swiglu({.gate_up = saved.gate_up, .y = saved.hidden}, context.stream);
}

void Mlp::expand(const Context& context, const Tensor& u, std::int64_t tokens, Saved& saved) const {
  saved.gate_up = context.empty({1, tokens, 2 * ffn_});
  gate_up_.forward(context, u, saved.gate_up.merge(0));
  activate(context, saved);
}

void Mlp::forward(const Context& context, const Tensor& u, std::int64_t tokens, ConstView residual,
                  View output, Saved& saved) const {
  expand(context, u, tokens, saved);
  down_.forward(context, saved.hidden.merge(0), residual, output);
}

Tensor Mlp::backward(const Context& context, const Tensor& u, const Tensor& dout, Saved& saved) const {
  if (!saved.hidden) activate(context, saved);
  Tensor dhidden = context.empty(saved.hidden.shape());
  down_.backward(context, dout, saved.hidden.merge(0), dhidden.merge(0));
  saved.hidden = Tensor();
  const Tensor dgate_up = std::exchange(saved.gate_up, {});
  swiglu_backward({.dy = dhidden, .gate_up = dgate_up, .dgate_up = dgate_up}, context.stream);
  dhidden = Tensor();
  return gate_up_.backward(context, dgate_up.merge(0), u);
}

}  // namespace transmamba
