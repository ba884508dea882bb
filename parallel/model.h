// The TransMamba language model: embedding, layers (mixers and MLPs, each with its norm and residual), final
// norm, head. A rank has the stages that its Placement gives it; a serial model is a mesh of one rank.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <variant>
#include <vector>

#include "core/config.h"
#include "core/parameter.h"
#include "parallel/layers/mixer.h"
#include "parallel/layers/mlp.h"
#include "parallel/layers/vocabulary.h"
#include "parallel/placement.h"

namespace transmamba {

/// Told by a model which of its parameters (indices into ParameterStore::parameters()) it is about to read,
/// and whose gradients a backward pass has completed.
class ParameterEvents {
 public:
  virtual ~ParameterEvents() = default;
  virtual void needed(std::size_t first, std::size_t last) = 0;
  virtual void complete(std::size_t first, std::size_t last) = 0;
};

class Model {
 public:
  /// Parameters [first, last) of the store.
  struct Range {
    std::size_t first = 0, last = 0;
  };
  /// A pre-normed layer with its residual: r + inner(norm(r)).
  struct Layer {
    Pack norm;
    std::variant<Mixer, Mlp> inner;
    Range parameters;
    bool is_mixer() const { return std::holds_alternative<Mixer>(inner); }
  };
  /// What the forward pass of one layer keeps for its backward pass, less what is computed again there.
  struct LayerSaved {
    Tensor residual;  // (rows, d) the layer's input
    Tensor u;         // (rows, d) after the norm
    std::variant<Mixer::Saved, Mlp::Saved> inner;
  };
  /// What a forward pass through one chunk keeps. With keep_states each mixer also keeps its states at P and
  /// at the end.
  struct Saved {
    bool keep_states = false;
    Tensor tokens;  // (b, t) int32
    std::vector<LayerSaved> layers;
    // Of the last stage:
    Tensor residual;  // (rows, d) the final norm's input
    Tensor normed;    // (rows, d)
    Tensor targets;   // (b, t) int32
    Tensor logits;    // (b, t, V / tp); the backward pass overwrites it
    Tensor lse;       // (b, t), S
  };
  /// Decoding state: one Mixer::Cache a mixer.
  struct Cache {
    Cache(const Context& context, const Model& model, std::int64_t batch, std::int64_t max_tokens);
    std::vector<Mixer::Cache> mixers;
  };

  /// `transpoints`: one a mixer of the whole model, in order (core/transpoint.h). Parameters are allocated
  /// (in buckets as ParameterStore::allocate makes them), not initialised. `placement.mesh` must outlive the
  /// model.
  Model(const ModelConfig& config, std::span<const std::int64_t> transpoints, const Context& context,
        Placement placement, std::int64_t bucket_bytes = 25 << 20, Recompute recompute = Recompute::none);
  /// The whole model on one rank.
  Model(const ModelConfig& config, std::span<const std::int64_t> transpoints, const Context& context,
        Recompute recompute = Recompute::none);

  /// One chunk forward. The first stage takes only this rank's tokens (b, t); the others also `input`, the
  /// residual (rows, d) of the stage before (TokenShard of b t). Gives the residual for the next stage, or
  /// from the last stage this rank's logits (b, t, V / tp). `saved` may be null: then nothing is kept.
  Tensor forward(const Context& context, int chunk, const Tensor& tokens, const Tensor& input,
                 Saved* saved) const;
  /// Cross entropy in nats of each token (b, t), S, after the last stage's forward(); `saved` as there.
  Tensor token_losses(const Context& context, const Tensor& logits, const Tensor& targets,
                      Saved* saved) const;
  /// One chunk backward: adds the gradients of scale * (sum of the token losses) to the parameters'
  /// gradients. `doutput` is the gradient of what forward() gave, absent at the last stage. Gives that of
  /// `input`, absent at the first. Frees `saved` on its way. `events` may be null.
  Tensor backward(const Context& context, int chunk, const Tensor& doutput, double scale, Saved& saved,
                  ParameterEvents* events = nullptr) const;

  // A whole model on one stage.
  Tensor forward(const Context& context, const Tensor& tokens, Saved* saved) const {
    return forward(context, 0, tokens, {}, saved);
  }
  void backward(const Context& context, double scale, Saved& saved) const {
    backward(context, 0, {}, scale, saved);
  }
  /// Logits (b, t, V) of the tokens that follow those already in `cache`. On one rank.
  Tensor decode(const Context& context, const Tensor& tokens, Cache& cache) const;

  ParameterStore& parameters() { return *store_; }
  const ParameterStore& parameters() const { return *store_; }
  const Placement& placement() const { return placement_; }
  std::int64_t hidden_size() const { return config_.hidden_size; }
  /// The sequences that this model's ranks share; of the tokens at hand where the layout leaves it open.
  Sequence sequence(std::int64_t local_tokens) const;
  const std::vector<Layer>& layers(int chunk) const { return chunks_[static_cast<std::size_t>(chunk)]; }
  void listen(ParameterEvents* events) { events_ = events; }  ///< for needed()

 private:
  ModelConfig config_;
  std::unique_ptr<Mesh> own_mesh_;
  Placement placement_;
  Recompute recompute_;
  std::unique_ptr<ParameterStore> store_;
  std::vector<std::vector<Layer>> chunks_;
  VocabEmbedding embedding_;
  Pack final_norm_;
  ColumnLinear head_;
  VocabCrossEntropy loss_;
  Range embedding_range_, head_range_;
  ParameterEvents* events_ = nullptr;
  bool has_late_head_ = false;  // late_head_rank()

  void declare(std::span<const std::int64_t> transpoints);
  /// One layer: gives its output, and in `saved` (where saved.residual is its input) what backward wants.
  Tensor forward(const Context& context, const Sequence& sequence, const Layer& layer, const Tensor& tokens,
                 bool keep_states, LayerSaved& saved) const;
  /// dresidual: of the layer's output, then of its input.
  void backward(const Context& context, const Sequence& sequence, const Layer& layer, const Tensor& tokens,
                const Tensor& dresidual, LayerSaved& saved) const;
  Tensor logits(const Context& context, const Tensor& tokens, const Tensor& residual, Saved& saved) const;
  Tensor norm(const Context& context, const Tensor& x, std::int64_t tokens, const Pack& weight) const;
  /// dx = dresidual + the gradient that comes through the norm, from dy; all (rows, d). dresidual may be
  /// absent, or dx.
  void norm_backward(const Context& context, const Tensor& dy, const Tensor& x, std::int64_t tokens,
                     const Pack& weight, const Tensor& dresidual, const Tensor& dx) const;
  void needed(Range range) const {
    if (events_) events_->needed(range.first, range.last);
  }
};

}  // namespace transmamba
