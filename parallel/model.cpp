#include "parallel/model.h"

#include "core/profile.h"
#include "kernels/rms_norm.h"
#include "parallel/layers/aligned_rows.h"

namespace transmamba {
namespace {

/// Rows (rows, d), of which the first `count` are tokens, as one norm group each: (1, count, 1, d).
Tensor groups(const Tensor& x, std::int64_t count) {
  return x.slice(0, 0, count).split(1, x.dim(1)).split(0, count);
}

Placement serial_placement(const Mesh& mesh, const ModelConfig& c) {
  return {&mesh, {{0, c.num_layers, true, true}}, {}};
}

}  // namespace

Model::Model(const ModelConfig& c, std::span<const std::int64_t> transpoints, const Context& context,
             Recompute recompute)
    : Model(c, transpoints, context, {}, 25 << 20, recompute) {}

Model::Model(const ModelConfig& c, std::span<const std::int64_t> transpoints, const Context& context,
             Placement placement, std::int64_t bucket_bytes, Recompute recompute)
    : config_(c),
      placement_(std::move(placement)),
      recompute_(recompute),
      store_(std::make_unique<ParameterStore>()) {
  check(c.vocab_size > 0, "model", "vocab_size: expected a positive number, got {}", c.vocab_size);
  check(static_cast<std::int64_t>(transpoints.size()) == c.num_mixers(), "model",
        "TransPoints: expected {}, one a mixer, got {}", c.num_mixers(), transpoints.size());
  if (placement_.mesh == nullptr) {
    own_mesh_ = Mesh::serial();
    placement_ = serial_placement(*own_mesh_, c);
  }
  const Mesh& mesh = *placement_.mesh;
  has_late_head_ =
      late_head_rank(c, placement_.layout, transpoints, mesh.tp().size(), mesh.pp().size(),
                     context.stream.device != Device::cpu) == static_cast<std::size_t>(mesh.cp().rank());
  declare(transpoints);
  store_->allocate(context, bucket_bytes, placement_.mesh->data().size());
}

void Model::declare(std::span<const std::int64_t> transpoints) {
  const ModelConfig& c = config_;
  const Mesh& mesh = *placement_.mesh;
  Communicator& tp = mesh.tp();
  const bool first = mesh.pp().rank() == 0, last = mesh.pp().rank() == mesh.pp().size() - 1;
  const bool shared_by_ends = c.tie_embeddings && mesh.ends() != nullptr;
  const auto vocabulary = [&](const char* name) {
    ParameterSpec spec{
        name, {{c.vocab_size, c.hidden_size}, 0, tp.size(), tp.rank()}, Init::normal(c.init_std), true};
    if (shared_by_ends) {  // both ends hold it; the first one's counts
      spec.summed_over = GradientSum::ends;
      spec.primary = first;
    }
    return spec;
  };
  const auto range_of = [&](auto&& declare) {
    Range range{store_->parameters().size(), 0};
    declare();
    range.last = store_->parameters().size();
    return range;
  };
  Pack embedding;
  embedding_range_ = range_of([&] {
    if (first || (last && c.tie_embeddings)) embedding = store_->add({vocabulary("embedding.weight")});
  });
  if (first) embedding_ = VocabEmbedding(embedding, c.vocab_size, tp);

  const auto norm = [&](const std::string& name) {  // each tp rank norms its own tokens
    return ParameterSpec{name, {{c.hidden_size}}, Init::constant(1), false, tp.rank() == 0, GradientSum::tp};
  };
  chunks_.resize(static_cast<std::size_t>(placement_.chunks()));
  for (int chunk = 0; chunk < placement_.chunks(); ++chunk) {
    const Stage& stage = placement_.chunk(chunk);
    std::size_t mixers = 0;
    for (std::int64_t i = 0; i < stage.end; ++i) {
      const bool is_mixer = c.kind(i) == 'T';
      const std::size_t mixer = mixers;
      mixers += is_mixer;
      if (i < stage.begin) continue;
      const std::string prefix = "layers." + std::to_string(i) + ".";
      auto& layers = chunks_[static_cast<std::size_t>(chunk)];
      const Range range = range_of([&] {
        const Pack weight = store_->add({norm(prefix + "norm.weight")});
        if (is_mixer)
          layers.push_back({weight, Mixer(c, prefix + "mixer.", transpoints[mixer], tp, *store_), {}});
        else
          layers.push_back({weight, Mlp(c, prefix + "mlp.", tp, *store_), {}});
      });
      layers.back().parameters = range;
    }
  }
  if (!last) return;
  head_range_ = range_of([&] {
    final_norm_ = store_->add({norm("final_norm.weight")});
    head_ = ColumnLinear(c.tie_embeddings ? embedding : store_->add({vocabulary("lm_head.weight")}), tp);
  });
  loss_ = VocabCrossEntropy(c.vocab_size, tp);
}

Sequence Model::sequence(std::int64_t local_tokens) const {
  Communicator& cp = placement_.mesh->cp();
  if (cp.size() == 1) return {cp, {{{{0, local_tokens}}}}};
  return {cp, placement_.layout};
}

Tensor Model::norm(const Context& context, const Tensor& x, std::int64_t tokens, const Pack& weight) const {
  const std::int64_t mine = TokenShard(placement_.mesh->tp(), tokens).mine;
  const Tensor y = context.empty(x.shape());
  if (mine > 0)
    rms_norm({.x = groups(x, mine),
              .weight = weight.value().split(0, x.dim(1)),
              .y = groups(y, mine),
              .eps = config_.norm_eps},
             context.stream);
  return y;
}

void Model::norm_backward(const Context& context, const Tensor& dy, const Tensor& x, std::int64_t tokens,
                          const Pack& weight, const Tensor& dresidual, const Tensor& dx) const {
  const std::int64_t mine = TokenShard(placement_.mesh->tp(), tokens).mine;
  if (mine > 0)
    rms_norm_backward({.dy = groups(dy, mine),
                       .x = groups(x, mine),
                       .weight = weight.value().split(0, x.dim(1)),
                       .dresidual = dresidual ? groups(dresidual, mine) : Tensor(),
                       .dx = groups(dx, mine),
                       .dweight = weight.grad().split(0, x.dim(1)),
                       .eps = config_.norm_eps},
                      context.stream);
}

Tensor Model::forward(const Context& context, const Sequence& sequence, const Layer& layer,
                      const Tensor& tokens, bool keep_states, LayerSaved& saved) const {
  const Tensor& residual = saved.residual;
  saved.u = norm(context, residual, tokens.numel(), layer.norm);
  const Tensor output = context.empty(residual.shape());
  if (const Mixer* mixer = std::get_if<Mixer>(&layer.inner)) {
    auto& inner = saved.inner.emplace<Mixer::Saved>();
    inner.keep_states = keep_states;
    mixer->forward(context, sequence, saved.u, tokens.dim(0), residual, output, inner);
  } else {
    auto& inner = saved.inner.emplace<Mlp::Saved>();
    std::get<Mlp>(layer.inner).forward(context, saved.u, tokens.numel(), residual, output, inner);
  }
  std::visit([&](auto& inner) { inner.drop(recompute_); }, saved.inner);
  if (recompute_ != Recompute::none) saved.u = Tensor();
  return output;
}

Tensor Model::logits(const Context& context, const Tensor& tokens, const Tensor& residual,
                     Saved& saved) const {
  const Region region(context, "head");
  saved.residual = residual;
  needed(head_range_);
  if (config_.tie_embeddings) needed(embedding_range_);
  saved.normed = norm(context, residual, tokens.numel(), final_norm_);
  const Tensor logits = aligned_rows(context, {tokens.dim(0), tokens.dim(1), loss_.mine()});
  head_.forward(context, saved.normed, logits.merge(0));
  if (recompute_ != Recompute::none) saved.normed = Tensor();
  return logits;
}

Tensor Model::forward(const Context& context, int chunk, const Tensor& tokens, const Tensor& input,
                      Saved* saved) const {
  Saved unused;
  Saved& s = saved ? *saved : unused;
  s.tokens = tokens;
  const Sequence sequence = this->sequence(tokens.dim(1));
  const Stage& stage = placement_.chunk(chunk);
  Tensor residual = input;
  if (stage.is_first) {
    const Region region(context, "embedding");
    needed(embedding_range_);
    residual = embedding_.forward(context, tokens);
  }
  std::int64_t number = stage.begin;
  for (const Layer& layer : layers(chunk)) {
    const Region region(context, layer.is_mixer() ? "mixer forward" : "mlp forward", {"layer", number++});
    needed(layer.parameters);
    LayerSaved kept{residual, {}, {}};
    residual = forward(context, sequence, layer, tokens, s.keep_states, kept);
    if (saved) s.layers.push_back(std::move(kept));
  }
  return stage.is_last ? logits(context, tokens, residual, s) : residual;
}

Tensor Model::token_losses(const Context& context, const Tensor& logits, const Tensor& targets,
                           Saved* saved) const {
  const Region region(context, "loss");
  const Tensor loss = context.empty(targets.shape(), context.statistics()),
               lse = context.empty(targets.shape(), context.statistics());
  loss_.forward(context, logits, targets, loss, lse);
  if (saved) saved->logits = logits, saved->targets = targets, saved->lse = lse;
  return loss;
}

void Model::backward(const Context& context, const Sequence& sequence, const Layer& layer,
                     const Tensor& tokens, const Tensor& dresidual, LayerSaved& saved) const {
  if (!saved.u) saved.u = norm(context, saved.residual, tokens.numel(), layer.norm);
  Tensor du;
  if (const Mixer* mixer = std::get_if<Mixer>(&layer.inner)) {
    auto& inner = std::get<Mixer::Saved>(saved.inner);
    if (recompute_ == Recompute::full) mixer->mix(context, sequence, saved.u, tokens.dim(0), inner);
    du = mixer->backward(context, sequence, saved.u, dresidual, inner);
  } else {
    const Mlp& mlp = std::get<Mlp>(layer.inner);
    auto& inner = std::get<Mlp::Saved>(saved.inner);
    if (recompute_ == Recompute::full) mlp.expand(context, saved.u, tokens.numel(), inner);
    du = mlp.backward(context, saved.u, dresidual, inner);
  }
  norm_backward(context, du, saved.residual, tokens.numel(), layer.norm, dresidual, dresidual);
  saved = {};
}

Tensor Model::backward(const Context& context, int chunk, const Tensor& doutput, double scale, Saved& s,
                       ParameterEvents* events) const {
  const auto complete = [&](Range range) {
    if (events) events->complete(range.first, range.last);
  };
  const Stage& stage = placement_.chunk(chunk);
  Tensor dresidual = doutput;
  if (stage.is_last) {
    const Region region(context, "head and loss backward");
    const std::int64_t tokens = s.tokens.numel();
    loss_.backward(context, s.logits, s.targets, s.lse, scale, s.logits);
    if (!s.normed) s.normed = norm(context, s.residual, tokens, final_norm_);
    const View dlogits = s.logits.merge(0);
    const Tensor dnormed = has_late_head_ ? head_.input_gradient(context, dlogits, s.normed.shape())
                                          : head_.backward(context, dlogits, s.normed);
    if (!has_late_head_) s.logits = s.normed = Tensor();
    dresidual = context.empty(s.residual.shape());
    norm_backward(context, dnormed, s.residual, tokens, final_norm_, {}, dresidual);
    s.residual = Tensor();
    complete(head_range_);
  }
  const Sequence sequence = this->sequence(s.tokens.dim(1));
  for (std::size_t i = layers(chunk).size(); i-- > 0;) {
    const Layer& layer = layers(chunk)[i];
    const Region region(context, layer.is_mixer() ? "mixer backward" : "mlp backward",
                        {"layer", stage.begin + static_cast<std::int64_t>(i)});
    backward(context, sequence, layer, s.tokens, dresidual, s.layers[i]);
    complete(layer.parameters);
  }
  if (has_late_head_) {
    const Region region(context, "head backward");
    head_.add_weight_gradient(context, s.logits.merge(0), s.normed);
    s.logits = s.normed = Tensor();
  }
  if (!stage.is_first) return dresidual;
  const Region region(context, "embedding backward");
  embedding_.backward(context, dresidual, s.tokens);
  complete(embedding_range_);
  return {};
}

Model::Cache::Cache(const Context& context, const Model& model, std::int64_t batch, std::int64_t max_tokens) {
  for (const Layer& layer : model.layers(0))
    if (const Mixer* mixer = std::get_if<Mixer>(&layer.inner))
      mixers.emplace_back(context, *mixer, batch, max_tokens);
}

Tensor Model::decode(const Context& context, const Tensor& tokens, Cache& cache) const {
  check(placement_.mesh->world().size() == 1, "model", "decoding runs on one rank, got {}",
        placement_.mesh->world().size());
  Saved unused;
  Tensor residual = embedding_.forward(context, tokens);
  std::size_t mixers = 0;
  for (const Layer& layer : layers(0)) {
    const Tensor u = norm(context, residual, tokens.numel(), layer.norm);
    if (const Mixer* mixer = std::get_if<Mixer>(&layer.inner)) {
      mixer->decode(context, u, tokens.dim(0), residual, cache.mixers[mixers++]);
    } else {
      Mlp::Saved inner;
      std::get<Mlp>(layer.inner).forward(context, u, tokens.numel(), residual, residual, inner);
    }
  }
  return logits(context, tokens, residual, unused);
}

}  // namespace transmamba
