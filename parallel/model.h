// The TransMamba language model: embedding, layers (mixers and MLPs, each with its norm and residual), final
// norm, head.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <variant>
#include <vector>

#include "core/config.h"
#include "core/parameter.h"
#include "parallel/layers/linear.h"
#include "parallel/layers/mixer.h"
#include "parallel/layers/mlp.h"

namespace transmamba {

class Model {
 public:
  /// A pre-normed layer with its residual: r + inner(norm(r)).
  struct Layer {
    Pack norm;
    std::variant<Mixer, Mlp> inner;
  };
  /// What the forward pass of one layer keeps for its backward pass.
  struct LayerSaved {
    Tensor residual;  // (b, t, d) the layer's input
    Tensor rstd;      // (b, t, 1)
    std::variant<Mixer::Saved, Mlp::Saved> inner;
  };
  /// What a whole forward pass keeps. With keep_states each mixer also keeps its states at P and at the end.
  struct Saved {
    bool keep_states = false;
    Tensor tokens;  // (b, t) int32
    std::vector<LayerSaved> layers;
    Tensor residual;  // (b, t, d) the final norm's input
    Tensor rstd, normed;
    Tensor targets;  // (b, t) int32
    Tensor logits;   // (b, t, V); the backward pass overwrites it
    Tensor lse;
  };
  /// Decoding state: one Mixer::Cache a mixer.
  struct Cache {
    Cache(const Context& context, const Model& model, std::int64_t batch, std::int64_t max_tokens);
    std::vector<Mixer::Cache> mixers;
  };

  /// `transpoints`: one a mixer, in order (core/transpoint.h). Parameters are allocated, not initialised.
  Model(const ModelConfig& config, std::span<const std::int64_t> transpoints, const Context& context);

  /// Logits (b, t, V) of tokens (b, t). `saved` may be null: then nothing is kept.
  Tensor forward(const Context& context, const Tensor& tokens, Saved* saved) const;
  /// Cross entropy in nats of each token (b, t) after forward(); `saved` as there.
  Tensor token_losses(const Context& context, const Tensor& logits, const Tensor& targets,
                      Saved* saved) const;
  /// Adds the gradients of scale * (sum of the token losses) to the parameters' gradients. Frees `saved` on
  /// its way.
  void backward(const Context& context, double scale, Saved& saved) const;
  /// Logits (b, t, V) of the tokens that follow those already in `cache`.
  Tensor decode(const Context& context, const Tensor& tokens, Cache& cache) const;

  ParameterStore& parameters() { return *store_; }
  const ParameterStore& parameters() const { return *store_; }
  const std::vector<Layer>& layers() const { return layers_; }

 private:
  ModelConfig config_;
  std::unique_ptr<ParameterStore> store_;
  Pack embedding_, final_norm_;
  std::vector<Layer> layers_;
  Linear head_;

  Tensor embed(const Context& context, const Tensor& tokens) const;
  Tensor logits(const Context& context, const Tensor& residual, Saved& saved) const;
};

}  // namespace transmamba
