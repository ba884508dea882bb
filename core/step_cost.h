// Seconds that the parts of a model take on a Machine: what core/cost_model.h counts in FLOPs, with the ops
// that have none. Communication is not in here. `tp` ranks share heads, MLP columns and vocabulary, and the
// tokens between layers. What a backward pass computes `again` counts as its own.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/config.h"
#include "core/machine.h"
#include "core/recompute.h"

namespace transmamba {

struct Seconds {
  double forward = 0, backward = 0;
  double total() const { return forward + backward; }
  Seconds& operator+=(const Seconds& other) {
    forward += other.forward;
    backward += other.backward;
    return *this;
  }
  Seconds operator*(double factor) const { return {forward * factor, backward * factor}; }
};

/// What the rank of a segment has of its sequence: all of it; that segment, on a GPU; or any number of them.
enum class Sharing : std::uint8_t { none, one_segment, segments };

/// The part of a mixer that depends on where its tokens are, for tokens [begin, end) of one sequence: before
/// P RoPE, attention over all tokens before (begin's too) and the Memory Converter (unless P = T: nobody
/// reads that state), from P on the scan. A segment after the first attends in two calls, to its own keys and
/// to those before. Where ranks share the sequence a segment is summarised before its entering state is known
/// and scanned after, backwards likewise: SSM tokens cost two summaries' forward passes more, but for the
/// sequence's last segment's and first's; and the first's rank, if it has no other, scans at once, as does
/// backwards the last's, if it has no tokens before P either.
Seconds mixing_seconds(const ModelConfig& model, const Machine& machine, std::int64_t transpoint,
                       std::int64_t seq_len, std::int64_t begin, std::int64_t end, std::int64_t tp,
                       Sharing sharing, Recompute again = Recompute::none);
/// The rest of a mixer, for `tokens` of any position: norms, projections, convolution, gate, residual.
Seconds mixer_rest_seconds(const ModelConfig& model, const Machine& machine, double tokens, std::int64_t tp,
                           Recompute again = Recompute::none);
Seconds mlp_seconds(const ModelConfig& model, const Machine& machine, double tokens, std::int64_t tp,
                    Recompute again = Recompute::none);
Seconds embedding_seconds(const ModelConfig& model, const Machine& machine, double tokens, std::int64_t tp);
/// Final norm, logits and loss.
Seconds head_seconds(const ModelConfig& model, const Machine& machine, double tokens, std::int64_t tp,
                     Recompute again = Recompute::none);

/// Forward and backward of the token at each position of a sequence, over all layers; `transpoints`: one a
/// mixer. The position-independent part is that of a token among all of the sequence. Balanced layouts are
/// made from this. `shared`: by ranks of several segments. Without what is computed again: that adds about as
/// much to every token, and a layout that depended on it would add up sums in another order.
std::vector<double> token_costs(const ModelConfig& model, std::span<const std::int64_t> transpoints,
                                const Machine& machine, std::int64_t seq_len, bool shared);

}  // namespace transmamba
