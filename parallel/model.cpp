#include "parallel/model.h"

#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/rms_norm.h"

namespace transmamba {
namespace {

/// One norm group: (b, t, d) -> (b, t, 1, d).
template <class AnyTensor>
AnyTensor one_group(const AnyTensor& x) {
  return x.split(2, x.dim(2));
}

/// y (b, t, d) = norm(x) * weight.
Tensor norm(const Context& context, const Tensor& x, const Pack& weight, double eps) {
  const Tensor y = context.empty(x.shape());
  rms_norm({.x = one_group(x), .weight = weight.value().split(0, x.dim(2)), .y = one_group(y), .eps = eps},
           context.stream);
  return y;
}

/// dresidual (b, t, d) += the gradient that comes through the norm, from dy (b, t, d).
void norm_backward(const Context& context, const Tensor& dy, const Tensor& x, const Pack& weight, double eps,
                   const Tensor& dresidual) {
  rms_norm_backward({.dy = one_group(dy),
                     .x = one_group(x),
                     .weight = weight.value().split(0, x.dim(2)),
                     .dresidual = one_group(dresidual),
                     .dx = one_group(dresidual),
                     .dweight = weight.grad().split(0, x.dim(2)),
                     .eps = eps},
                    context.stream);
}

Tensor copy_of(const Context& context, const Tensor& x) {
  const Tensor y = context.empty(x.shape());
  copy({.x = x, .y = y}, context.stream);
  return y;
}

}  // namespace

Model::Model(const ModelConfig& c, std::span<const std::int64_t> transpoints, const Context& context)
    : config_(c), store_(std::make_unique<ParameterStore>()) {
  check(c.vocab_size > 0, "model", "vocab_size: expected a positive number, got {}", c.vocab_size);
  check(static_cast<std::int64_t>(transpoints.size()) == c.num_mixers(), "model",
        "TransPoints: expected {}, one a mixer, got {}", c.num_mixers(), transpoints.size());
  const std::int64_t d = c.hidden_size;
  const ParameterSpec norm{"", {{d}}, Init::constant(1)};
  const auto named = [](ParameterSpec spec, std::string name) { return spec.name = std::move(name), spec; };
  const auto vocabulary = [&](const char* name) {
    return ParameterSpec{name, {{c.vocab_size, d}}, Init::normal(c.init_std), true};
  };

  embedding_ = store_->add({vocabulary("embedding.weight")});
  std::size_t mixers = 0;
  for (std::int64_t i = 0; i < c.num_layers; ++i) {
    const std::string prefix = "layers." + std::to_string(i) + ".";
    const Pack weight = store_->add({named(norm, prefix + "norm.weight")});
    if (c.kind(i) == 'T')
      layers_.push_back({weight, Mixer(c, prefix + "mixer.", transpoints[mixers++], *store_)});
    else
      layers_.push_back({weight, Mlp(c, prefix + "mlp.", *store_)});
  }
  final_norm_ = store_->add({named(norm, "final_norm.weight")});
  head_ = Linear(c.tie_embeddings ? embedding_ : store_->add({vocabulary("lm_head.weight")}));
  store_->allocate(context);
}

Tensor Model::embed(const Context& context, const Tensor& tokens) const {
  const Tensor residual = context.empty({tokens.dim(0), tokens.dim(1), config_.hidden_size});
  embedding({.tokens = tokens, .weight = embedding_.value(), .y = residual}, context.stream);
  return residual;
}

Tensor Model::logits(const Context& context, const Tensor& residual, Saved& saved) const {
  saved.residual = residual;
  saved.normed = norm(context, residual, final_norm_, config_.norm_eps);
  const Tensor logits = context.empty({residual.dim(0), residual.dim(1), config_.vocab_size});
  head_.forward(context, saved.normed, logits);
  return logits;
}

Tensor Model::forward(const Context& context, const Tensor& tokens, Saved* saved) const {
  Saved unused;
  Saved& s = saved ? *saved : unused;
  s.tokens = tokens;
  s.layers.clear();
  Tensor residual = embed(context, tokens);
  for (const Layer& layer : layers_) {
    LayerSaved kept;
    kept.residual = residual;
    const Tensor u = norm(context, residual, layer.norm, config_.norm_eps);
    residual = copy_of(context, residual);
    if (const Mixer* mixer = std::get_if<Mixer>(&layer.inner)) {
      Mixer::Saved inner;
      inner.keep_states = s.keep_states;
      mixer->forward(context, u, residual, inner);
      kept.inner = std::move(inner);
    } else {
      std::get<Mlp>(layer.inner).forward(context, u, residual, kept.inner.emplace<Mlp::Saved>());
    }
    if (saved) s.layers.push_back(std::move(kept));
  }
  return logits(context, residual, s);
}

Tensor Model::token_losses(const Context& context, const Tensor& logits, const Tensor& targets,
                           Saved* saved) const {
  const Tensor loss = context.empty(targets.shape()), lse = context.empty(targets.shape());
  const Tensor partial = context.empty({2, targets.dim(0), targets.dim(1)});
  vocab_max({.logits = logits, .maximum = lse}, context.stream);
  cross_entropy_partial({.logits = logits, .targets = targets, .maximum = lse, .partial = partial},
                        context.stream);
  cross_entropy_loss({.maximum = lse, .partial = partial, .loss = loss, .lse = lse}, context.stream);
  if (saved) saved->logits = logits, saved->targets = targets, saved->lse = lse;
  return loss;
}

void Model::backward(const Context& context, double scale, Saved& s) const {
  cross_entropy_backward(
      {.logits = s.logits, .targets = s.targets, .lse = s.lse, .scale = scale, .dlogits = s.logits},
      context.stream);
  Tensor dnormed = context.empty(s.normed.shape());
  head_.backward(context, s.logits, s.normed, dnormed);
  s.logits = Tensor();
  const Tensor dresidual = context.empty(s.residual.shape());
  fill({.value = 0, .y = dresidual}, context.stream);
  norm_backward(context, dnormed, s.residual, final_norm_, config_.norm_eps, dresidual);
  for (std::size_t i = layers_.size(); i-- > 0;) {
    const Layer& layer = layers_[i];
    LayerSaved& kept = s.layers[i];
    const Tensor& du = dnormed;
    if (const Mixer* mixer = std::get_if<Mixer>(&layer.inner))
      mixer->backward(context, dresidual, du, std::get<Mixer::Saved>(kept.inner));
    else
      std::get<Mlp>(layer.inner).backward(context, dresidual, du, std::get<Mlp::Saved>(kept.inner));
    norm_backward(context, du, kept.residual, layer.norm, config_.norm_eps, dresidual);
    kept = {};
  }
  embedding_backward({.dy = dresidual, .tokens = s.tokens, .dweight = embedding_.grad()}, context.stream);
}

Model::Cache::Cache(const Context& context, const Model& model, std::int64_t batch, std::int64_t max_tokens) {
  for (const Layer& layer : model.layers())
    if (const Mixer* mixer = std::get_if<Mixer>(&layer.inner))
      mixers.emplace_back(context, *mixer, batch, max_tokens);
}

Tensor Model::decode(const Context& context, const Tensor& tokens, Cache& cache) const {
  Saved unused;
  Tensor residual = embed(context, tokens);
  std::size_t mixers = 0;
  for (const Layer& layer : layers_) {
    const Tensor u = norm(context, residual, layer.norm, config_.norm_eps);
    if (const Mixer* mixer = std::get_if<Mixer>(&layer.inner)) {
      mixer->decode(context, u, residual, cache.mixers[mixers++]);
    } else {
      Mlp::Saved inner;
      std::get<Mlp>(layer.inner).forward(context, u, residual, inner);
    }
  }
  return logits(context, residual, unused);
}

}  // namespace transmamba
