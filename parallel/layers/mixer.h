// The TransMamba mixer: one set of projections, read as Q, K, V by attention for tokens before the TransPoint
// P and as C, B, x by the SSM from P on. The SSM starts from the state the Memory Converter computes from the
// prefix's K and V.
#pragma once

#include "core/config.h"
#include "parallel/layers/linear.h"

namespace transmamba {

class Mixer {
 public:
  /// What both readings share, computed for all tokens (c = h(2n + p) channels).
  struct Projections {
    Tensor projected;  // (b, t, c + hp + h) before convolution and softplus: q, k, v, then z, then dt
    Tensor qkv;        // (b, t, c) after convolution and SiLU
    Tensor dt;         // (b, t, h)
  };

  /// What the forward pass keeps for the backward pass (b batch, T tokens, P the TransPoint).
  struct Saved {
    std::int64_t transpoint = 0;
    Tensor u;  // (b, T, d) the layer's input
    Projections in;
    Tensor q_rot, k_rot;  // (b, P, h, n) after RoPE
    Tensor lse;           // (b, h, P)
    Tensor state;         // (b, h, n, p) at P: the Memory Converter's result
    Tensor y;             // (b, T, h, p) attention's and the SSM's outputs side by side
    Tensor normed;        // (b, T, h, p)
    Tensor last_state;    // (b, h, n, p) after the last token; only computed with keep_states
    bool keep_states = false;
  };

  /// Token-by-token decoding: keys and values before P; one state from P on, when they are freed.
  struct Cache {
    Cache(const Context& context, const Mixer& mixer, std::int64_t batch, std::int64_t max_tokens);
    std::int64_t position = 0;  // tokens seen
    Tensor halo;                // (b, w - 1, c) the convolution's last inputs
    Tensor k, k_rot, v, dt;     // (b, min(P, max_tokens), ...)
    Tensor state;               // (b, h, n, p) from P on
  };

  /// `transpoint` may be past the sequence: then all tokens attend. Declares `<prefix>q_proj.weight` and the
  /// others.
  Mixer(const ModelConfig& config, const std::string& prefix, std::int64_t transpoint, ParameterStore& store);

  /// residual (b, t, d) += mixer(u), u (b, t, d).
  void forward(const Context& context, const Tensor& u, View residual, Saved& saved) const;
  /// From dout, the gradient of the layer's output, to du (overwritten).
  void backward(const Context& context, ConstView dout, View du, Saved& saved) const;
  /// The same function of the tokens as forward(), for the tokens after those in `cache`: any number at a
  /// time.
  void decode(const Context& context, const Tensor& u, View residual, Cache& cache) const;

 private:
  std::int64_t heads_, n_, p_, conv_width_, transpoint_;
  std::string gate_;
  bool converter_;
  double rope_theta_, norm_eps_;
  Linear in_, out_;
  Pack conv_weight_, conv_bias_, dt_bias_, a_log_, d_skip_, norm_weight_;

  std::int64_t channels() const { return heads_ * (2 * n_ + p_); }
  /// q (part 0), k (1) and v (2) as (b, t, h, width) windows on qkv (b, t, c).
  Tensor head_view(const Tensor& qkv, int part) const {
    const std::int64_t begin = part * heads_ * n_, width = part == 2 ? p_ : n_;
    return qkv.slice(2, begin, begin + heads_ * width).split(2, width);
  }
  /// Parts of `projected`: what the convolution reads (b, t, c), z (b, t, h, p), dt before its softplus (b,
  /// t, h).
  Tensor conv_view(const Tensor& projected) const { return projected.slice(2, 0, channels()); }
  Tensor gate_view(const Tensor& projected) const {
    return projected.slice(2, channels(), channels() + heads_ * p_).split(2, p_);
  }
  Tensor step_view(const Tensor& projected) const {
    return projected.slice(2, channels() + heads_ * p_, channels() + heads_ * (p_ + 1));
  }

  /// Project and convolve. `halo`: the convolution's inputs before u's first token; absent at the sequence's
  /// start.
  Projections project(const Context& context, const Tensor& u, ConstView halo) const;
  /// The Memory Converter: the state (b, h, n, p) that the SSM starts from after these tokens.
  void convert(const Context& context, ConstView k, ConstView v, ConstView dt, View state) const;
  /// The SSM on tokens [cut, t) of `in`, into the same tokens of y (b, t, h, p). `last` may be absent, or
  /// alias `state`.
  void scan(const Context& context, const Projections& in, std::int64_t cut, ConstView state, const Tensor& y,
            View last) const;
  /// SiLU(z) where it gates, then the per-head norm. Tokens from `cut` on are the SSM's.
  Tensor gate_and_norm(const Context& context, const Tensor& y, const Projections& in,
                       std::int64_t cut) const;
  std::int64_t first_gated(std::int64_t cut, std::int64_t tokens) const;
};

}  // namespace transmamba
