// The TransMamba mixer: one set of projections, read as Q, K, V by attention for tokens before the TransPoint
// P and as C, B, x by the SSM from P on. The SSM starts from the state the Memory Converter computes from the
// prefix's K and V.
//
// tp ranks share the heads, cp ranks the sequence. A rank's tokens are segments in order of time
// (parallel/context/sequence.h), so those before P are its first ones: [0, cut) attend, [cut, t) scan.
#pragma once

#include "core/config.h"
#include "core/recompute.h"
#include "parallel/context/kv_gather.h"
#include "parallel/context/state_handoff.h"
#include "parallel/layers/column_linear.h"
#include "parallel/layers/row_linear.h"

namespace transmamba {

class Mixer {
 public:
  /// What both readings share, computed for all of this rank's tokens and heads (c = h(2n + p) channels).
  struct Projections {
    Tensor projected;  // (b, t, c + hp + h) before convolution and softplus: q, k, v, then z, then dt
    Tensor halo;       // (b, segments (w - 1), c) `projected` before each segment; absent without neighbours
    Tensor dt;         // (b, t, h), S
    // (b, t, c) after convolution, SiLU and, before P, RoPE of q and k. Where the SSM's state reads those
    // keys too they stay as they were, and k_rotated (b, cut, h, n) holds them turned; elsewhere it is
    // absent.
    Tensor qkv, k_rotated;
  };

  /// What the forward pass keeps for the backward pass.
  struct Saved {
    Projections in;
    Tensor lse;                 // (b, h, cut), S
    Entering entering;          // the states that enter its segments; absent where none can
    Tensor prefix_log_decay;    // (b, h), S: with `entering`, of the tokens before P in P's segment
    std::vector<Tensor> state;  // for each segment with SSM tokens: (b, h, n, p), S, at the first of them
    Tensor y;                   // (b, t, h, p) attention's and the SSM's outputs side by side
    Tensor normed;              // (b, t, h, p)
    // With keep_states, on the ranks that come by them: the Memory Converter's result at P, and after the
    // last token.
    bool keep_states = false;
    Tensor state_at_transpoint, last_state;

    /// Drops what backward() is to compute again.
    void drop(Recompute recompute);
  };

  /// Token-by-token decoding: keys and values before P; one state from P on, when they are freed.
  struct Cache {
    Cache(const Context& context, const Mixer& mixer, std::int64_t batch, std::int64_t max_tokens);
    std::int64_t position = 0;   // tokens seen
    Tensor halo;                 // (b, w - 1, c) the convolution's last inputs
    Tensor k, k_rotated, v, dt;  // (b, min(P, max_tokens), ...)
    Tensor state;                // (b, h, n, p), S, from P on
  };

  /// `transpoint` may be past the sequence: then all tokens attend. Declares `<prefix>q_proj.weight` and the
  /// others.
  Mixer(const ModelConfig& config, const std::string& prefix, std::int64_t transpoint, Communicator& tp,
        ParameterStore& store);

  /// output = residual + mixer(u), all (rows, d), this rank's rows (TokenShard) of b sequences' tokens.
  /// `output` may be `residual`.
  void forward(const Context& context, const Sequence& sequence, const Tensor& u, std::int64_t batch,
               ConstView residual, View output, Saved& saved) const;
  /// Of forward() all but the product that gives the output: what backward() wants kept.
  void mix(const Context& context, const Sequence& sequence, const Tensor& u, std::int64_t batch,
           Saved& saved) const;
  /// From dout, the gradient of the layer's output, to that of u. Frees `saved` on its way.
  Tensor backward(const Context& context, const Sequence& sequence, const Tensor& u, const Tensor& dout,
                  Saved& saved) const;
  /// residual += mixer(u): the same function of the tokens as forward(), for the tokens after those in
  /// `cache`, any number at a time. On one rank.
  void decode(const Context& context, const Tensor& u, std::int64_t batch, View residual, Cache& cache) const;

 private:
  std::int64_t heads_, n_, p_, conv_width_, transpoint_;  // heads_: of this rank
  std::string gate_;
  bool converter_;
  double rope_theta_, norm_eps_;
  ColumnLinear in_;
  RowLinear out_;
  Pack conv_weight_, conv_bias_, dt_bias_, a_log_, d_skip_, norm_weight_;

  std::int64_t channels() const { return heads_ * (2 * n_ + p_); }
  std::int64_t projected_width() const { return channels() + heads_ * (p_ + 1); }
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
    return projected.slice(2, channels() + heads_ * p_, projected_width());
  }

  /// A segment of this rank, by its place among the rank's tokens: [begin, end), the SSM's from `cut` on.
  struct Run {
    std::int64_t begin, cut, end;
    std::int64_t position;    // of its first token in time
    std::int64_t summarised;  // what later segments need of it is the summary of [summarised, end)
    bool is_last;             // in time, over all ranks
    bool is_first() const { return position == 0; }
    bool scans(bool keep_states) const { return cut < end || (keep_states && is_last); }
  };
  std::vector<Run> runs(const Sequence& sequence) const;
  /// The run's tokens before P out of those of all runs, (b, cut, ..); absent where it has none.
  static Tensor before_transpoint(const Tensor& x, const Run& run) {
    return x && run.begin < run.cut ? x.slice(1, run.begin, run.cut) : Tensor();
  }

  // In backward passes `d` holds the gradients of the Projections, each in its member's shape and type.

  /// Project, convolve and rotate. A key that attention and the SSM's state both read exists in both forms.
  Projections project(const Context& context, const Tensor& u, std::int64_t batch, std::int64_t tokens) const;
  bool state_reads_prefix(const Sequence& sequence, bool keep_states) const {
    return converter_ && (transpoint_ < sequence.length() || keep_states);
  }
  void convolve(const Context& context, const Projections& in, const Run& run, ConstView halo) const;
  /// Gathers in.halo first where it is not there; meanwhile most tokens are convolved.
  /// `halo`: what was expected of it, or nothing.
  void convolve(const Context& context, const Sequence& sequence, bool keep_states, Projections& in,
                TokenExchange::Transfer halo) const;
  void convolve_backward(const Context& context, const Sequence& sequence, const Projections& in,
                         const Projections& d) const;

  /// Attend before P: every query sees the keys up to its own. First to those of its own segment, then to
  /// those before that.
  Tensor attended_keys(const Projections& in) const {  ///< of at least the tokens before P
    return in.k_rotated ? in.k_rotated : head_view(in.qkv, 1);
  }
  void attend(const Context& context, const Sequence& sequence, const Saved& s) const;
  void attend_earlier(const Context& context, const Sequence& sequence, const EarlierKeys& keys,
                      const Saved& s) const;
  void attend_backward(const Context& context, const Sequence& sequence, const Tensor& dy, const Saved& s,
                       const Projections& d) const;
  /// Starts to give the gradients of `keys` to those who have them.
  void attend_earlier_backward(const Context& context, const Sequence& sequence, EarlierKeys& keys,
                               const Tensor& dy, const Saved& s, const Projections& d) const;

  /// The segment summary of tokens [begin, end) of `in`: the Memory Converter, and what ranks exchange.
  void summarise(const Context& context, const Projections& in, std::int64_t begin, std::int64_t end,
                 ConstView state_in, View state_out, View log_decay) const;
  Summaries summaries(const Context& context, const Sequence& sequence, const Projections& in) const;
  /// Scan from P on: the SSM on tokens [begin, end) of `in`. `last` may be absent, or alias `state`.
  void scan(const Context& context, const Projections& in, std::int64_t begin, std::int64_t end,
            ConstView state, const Tensor& y, View last) const;
  /// `first_end` (b, h, n, p), which may be absent, gets the state that the sequence's first segment ends
  /// with, for a rank that has no other.
  void scan(const Context& context, const Sequence& sequence, Saved& s, View first_end = {}) const;
  /// The summary of a rank's only segment, which nothing enters: what its scan ends with.
  Summaries scan_first(const Context& context, const Sequence& sequence, Saved& s) const;
  /// The gradients of the states that entered this rank's segments, by the segments' own outputs.
  Summaries entry_gradients(const Context& context, const Sequence& sequence, const Tensor& dy,
                            const Saved& s) const;
  /// `dends` (segments, b, h, n, p): the gradients of the states that the segments end with, where others
  /// read them. `last_entry` (b, h, n, p), which may be absent, gets that of the state that enters the
  /// sequence's last segment, for a rank that has no other and no tokens before P.
  void scan_backward(const Context& context, const Sequence& sequence, const Tensor& dy, const Tensor& dends,
                     const Saved& s, const Projections& d, View last_entry = {}) const;
  /// As scan_first(): such a rank's entry gradient, which its scan's backward pass gives.
  Summaries scan_last_backward(const Context& context, const Sequence& sequence, const Tensor& dy,
                               const Saved& s, const Projections& d) const;

  /// SiLU(z) where it gates, then the per-head norm. Tokens from `cut` on are the SSM's.
  Tensor gate_and_norm(const Context& context, const Tensor& y, const Projections& in,
                       std::int64_t cut) const;
  void gate_and_norm_backward(const Context& context, const Tensor& dnormed, const Saved& s, std::int64_t cut,
                              const Projections& d) const;
  std::int64_t first_gated(std::int64_t cut, std::int64_t tokens) const;
};

}  // namespace transmamba
