#include "parallel/plan/step_time.h"

#include <algorithm>
#include <map>

namespace transmamba {
namespace {

double real(std::int64_t x) { return static_cast<double>(x); }

Recompute again(const Config& c) { return recompute_of(c.train.recompute); }

/// Tokens of a micro-batch on one context rank.
double rank_tokens(const Config& c) {
  return real(c.train.micro_batch) * real(c.train.seq_len) / real(c.parallel.cp);
}

/// Of a micro-batch's activations (b, t, d) over tp.
struct TokenTransfers {
  double gather = 0, scatter = 0;
  /// What is left of a transfer beside products of `seconds`. On the CPU all: there nothing moves meanwhile.
  double besides(double transfer, double seconds) const {
    return on_gpu ? std::max(0.0, transfer - seconds) : transfer;
  }
  bool on_gpu = false;
  explicit TokenTransfers(const RankShare& share) : on_gpu(share.config.train.device == "cuda") {
    const Config& c = share.config;
    const Links& links = share.machine.links(c.parallel.tp);
    const double bytes = rank_tokens(c) * real(c.model.hidden_size) * element_bytes(c);
    gather = all_gather_seconds(links, c.parallel.tp, bytes);
    scatter = reduce_scatter_seconds(links, c.parallel.tp, bytes);
  }
};

/// The mixing of one sequence, for each context rank.
std::vector<Seconds> mixing_by_rank(const RankShare& share, std::int64_t transpoint) {
  const Config& c = share.config;
  std::vector<Seconds> by_rank;
  for (const std::vector<Segment>& mine : share.layout.segments) {
    Seconds& sum = by_rank.emplace_back();
    for (const Segment& s : mine)
      sum += mixing_seconds(c.model, share.machine, transpoint, c.train.seq_len, s.begin, s.end,
                            c.parallel.tp, c.parallel.cp > 1, again(c));
  }
  return by_rank;
}

std::size_t most_segments(const ContextLayout& layout) {
  std::size_t most = 0;
  for (const auto& mine : layout.segments) most = std::max(most, mine.size());
  return most;
}

/// Of a mixer or an MLP, whose first product is d to `in` wide on a rank and its last `out` to d: tokens are
/// gathered for the first, in backward too, and there once more for one that is done again. Of the products
/// of tp runs all but one are beside transfers (parallel/layers/token_shard.h); in backward all of the first
/// layer's.
Seconds layer_tp_seconds(const RankShare& share, double in, double out) {
  const Config& c = share.config;
  const double tokens = rank_tokens(c), d = real(c.model.hidden_size), tp = real(c.parallel.tp);
  const TokenTransfers moves(share);
  const Machine& m = share.machine;
  const double beside = (tp - 1) / tp;
  const double gathered = moves.besides(moves.gather, beside * m.gemm(tokens, in, d));
  Seconds seconds{gathered + moves.besides(moves.scatter, beside * m.gemm(tokens, d, out)),
                  moves.besides(moves.gather, beside * m.gemm(tokens, out, d)) +
                      moves.besides(moves.gather, m.gemm(tokens, d, in)) +
                      moves.besides(moves.scatter, m.gemm(in, d, tokens))};
  if (again(c) == Recompute::full) seconds.backward += gathered;
  return seconds;
}

/// Keys and values of [0, P), summaries, and the convolution's halo. Backward gathers keys and values again,
/// and returns their gradients.
Seconds cp_seconds(const RankShare& share, std::int64_t transpoint) {
  const Config& c = share.config;
  const std::int64_t cp = c.parallel.cp;
  if (cp == 1) return {};
  const Links& links = share.machine.links(c.parallel.tp * cp);
  const double heads = real(c.model.num_heads) / real(c.parallel.tp), n = real(c.model.qk_head_dim),
               p = real(c.model.v_head_dim), bytes = element_bytes(c), batch = real(c.train.micro_batch);
  const double segments = real(static_cast<std::int64_t>(most_segments(share.layout)));
  const auto exchange = [&](double whole) {  // every rank ends up with the whole, from all others at once
    return collective_seconds(links.exchange, cp, whole * real(cp - 1) / real(cp), 1);
  };
  Seconds seconds;
  if (transpoint > 0) {
    const double keys = exchange(batch * real(transpoint) * heads * (n + p) * bytes);
    seconds += {keys, 2 * keys};
  }
  if (transpoint < c.train.seq_len) {
    const double states = exchange(real(cp) * segments * batch * heads * (n * p + 1) * std::max(bytes, 4.0));
    seconds += {states, states};
  }
  if (c.model.conv_width > 1) {
    const double halo = batch * segments * real(c.model.conv_width - 1) * heads * (2 * n + p) * bytes;
    const double once = collective_seconds(links.exchange, cp, halo, 1);
    seconds += {once, once};
  }
  if (again(c) == Recompute::full) seconds.backward += seconds.forward;
  return seconds;
}

}  // namespace

double element_bytes(const Config& config) {
  return config.train.dtype == "float64" ? 8 : config.train.dtype == "bfloat16" ? 2 : 4;
}
double statistics_bytes(const Config& config) { return config.train.dtype == "float64" ? 8 : 4; }

LayerTime mixer_time(const RankShare& share, std::int64_t transpoint) {
  const Config& c = share.config;
  Seconds busiest;
  for (const Seconds& mixing : mixing_by_rank(share, transpoint))
    if (mixing.total() > busiest.total()) busiest = mixing;
  LayerTime time;
  time.compute = mixer_rest_seconds(c.model, share.machine, rank_tokens(c), c.parallel.tp, again(c));
  time.compute += busiest * real(c.train.micro_batch);
  const double segments = real(static_cast<std::int64_t>(most_segments(share.layout)));
  const OpCost& conv = share.machine.qkv_conv;  // of which mixer_rest_seconds() counts one call
  time.compute += Seconds{conv.call, conv.call_backward} * (segments - 1);
  const double heads = real(c.model.num_heads) / real(c.parallel.tp), n = real(c.model.qk_head_dim),
               p = real(c.model.v_head_dim);
  time.tp = layer_tp_seconds(share, heads * (2 * n + 2 * p + 1), heads * p);
  time.cp = cp_seconds(share, transpoint);
  return time;
}

LayerTime mlp_time(const RankShare& share) {
  const Config& c = share.config;
  const double ffn = real(c.model.ffn_hidden_size) / real(c.parallel.tp);
  return {mlp_seconds(c.model, share.machine, rank_tokens(c), c.parallel.tp, again(c)),
          layer_tp_seconds(share, 2 * ffn, ffn),
          {}};
}

LayerTime embedding_time(const RankShare& share) {
  const Config& c = share.config;
  const TokenTransfers moves(share);
  return {embedding_seconds(c.model, share.machine, rank_tokens(c), c.parallel.tp),
          {moves.scatter, moves.gather},
          {}};
}

LayerTime head_time(const RankShare& share) {
  const Config& c = share.config;
  const TokenTransfers moves(share);
  const double product = share.machine.gemm(rank_tokens(c), real(c.model.vocab_size) / real(c.parallel.tp),
                                            real(c.model.hidden_size));
  return {head_seconds(c.model, share.machine, rank_tokens(c), c.parallel.tp, again(c)),
          {moves.besides(moves.gather, product * (1 - 1 / real(c.parallel.tp))),
           moves.besides(moves.gather, product) + moves.besides(moves.scatter, product)},
          {}};
}

double transfer_time(const RankShare& share) {
  const Config& c = share.config;
  const ParallelConfig& p = c.parallel;
  const double bytes = rank_tokens(c) / real(p.tp) * real(c.model.hidden_size) * element_bytes(c);
  return collective_seconds(share.machine.links(p.tp * p.cp * p.dp * p.pp).send, p.pp, bytes, 1);
}

std::vector<LayerTime> layer_times(const RankShare& share, std::span<const std::int64_t> transpoints) {
  std::map<std::int64_t, LayerTime> mixers;  // many layers share a TransPoint
  for (const std::int64_t transpoint : transpoints)
    if (!mixers.contains(transpoint)) mixers[transpoint] = mixer_time(share, transpoint);
  const LayerTime mlp = mlp_time(share);
  std::vector<LayerTime> times;
  std::size_t mixer = 0;
  for (std::int64_t i = 0; i < share.config.model.num_layers; ++i)
    times.push_back(share.config.model.kind(i) == 'T' ? mixers[transpoints[mixer++]] : mlp);
  return times;
}

double waiting_imbalance(const RankShare& share, std::span<const std::int64_t> transpoints) {
  const auto ranks = static_cast<double>(share.layout.segments.size());
  const double batch = real(share.config.train.micro_batch);
  double longest = 0, mean = 0;
  for (const LayerTime& layer : layer_times(share, transpoints)) longest += layer.compute.total();
  longest += embedding_time(share).compute.total() + head_time(share).compute.total();
  mean = longest;
  std::map<std::int64_t, double> excess;
  for (const std::int64_t transpoint : transpoints) {
    if (!excess.contains(transpoint)) {
      double most = 0, sum = 0;
      for (const Seconds& mixing : mixing_by_rank(share, transpoint))
        most = std::max(most, mixing.total()), sum += mixing.total();
      excess[transpoint] = batch * (most - sum / ranks);
    }
    mean -= excess[transpoint];
  }
  return mean > 0 ? longest / mean : 1;
}

}  // namespace transmamba
