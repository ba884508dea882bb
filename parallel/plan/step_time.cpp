#include "parallel/plan/step_time.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "parallel/placement.h"

namespace transmamba {
namespace {

double real(std::int64_t x) { return static_cast<double>(x); }

Recompute again(const Config& c) { return recompute_of(c.train.recompute); }

/// Tokens of a micro-batch on one context rank, in the mean.
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

/// What in a mixer depends on a rank's segments, for each context rank: the mixing of a micro-batch and what
/// more than one segment adds to the convolution's calls, of which mixer_rest_seconds() counts one.
std::vector<Seconds> mixing_by_rank(const RankShare& share, std::int64_t transpoint) {
  const Config& c = share.config;
  const OpCost& conv = share.machine.qkv_conv;
  std::vector<Seconds> by_rank;
  for (const std::vector<Segment>& mine : share.layout.segments) {
    Seconds sum;
    const Sharing sharing = c.parallel.cp == 1                             ? Sharing::none
                            : mine.size() == 1 && c.train.device == "cuda" ? Sharing::one_segment
                                                                           : Sharing::segments;
    for (const Segment& s : mine)
      sum += mixing_seconds(c.model, share.machine, transpoint, c.train.seq_len, s.begin, s.end,
                            c.parallel.tp, sharing, again(c));
    by_rank.push_back(sum * real(c.train.micro_batch));
    // A segment with a halo is convolved in two calls, as one is on its way.
    const double more = real(std::ssize(mine)) - 1, halos = more + (mine.front().begin > 0 ? 1 : 0);
    by_rank.back() += {conv.call * (more + halos), conv.call_backward * more};
  }
  return by_rank;
}

Seconds mean_of(const std::vector<Seconds>& by_rank) {
  const Seconds sum = std::accumulate(by_rank.begin(), by_rank.end(), Seconds{},
                                      [](Seconds a, const Seconds& b) { return a += b; });
  return sum * (1 / real(std::ssize(by_rank)));
}

/// Kernels of a micro-batch until the last context rank is through. In a mixer ranks wait for each other, but
/// on a GPU not one that only sends, as nobody's tokens are before its own, backwards after: it may be ahead,
/// and what one layer costs it more another may save. Where keys cross ranks it waits like the others.
double pass_seconds(const RankShare& share, std::span<const std::int64_t> transpoints,
                    const std::map<std::int64_t, std::vector<Seconds>>& mixing) {
  const Config& c = share.config;
  const auto& segments = share.layout.segments;
  const std::size_t ranks = segments.size();
  std::vector<double> portion;  // of the mean number of tokens
  for (std::size_t r = 0; r < ranks; ++r)
    portion.push_back(real(share.layout.tokens_of(r)) * real(c.parallel.cp) / real(c.train.seq_len));
  std::vector<double> time(ranks, 0.0);
  const auto add = [&](double seconds) {
    for (std::size_t r = 0; r < ranks; ++r) time[r] += seconds * portion[r];
  };
  std::vector<bool> is_first, is_last;  // all tokens of other ranks are after this rank's, or before
  for (std::size_t r = 0; r < ranks; ++r) {
    const auto others = [&](auto&& are) {
      for (std::size_t other = 0; other < ranks; ++other)
        if (other != r && !are(segments[other], segments[r])) return false;
      return true;
    };
    is_first.push_back(others([](auto& x, auto& mine) { return x.front().begin > mine.back().begin; }));
    is_last.push_back(others([](auto& x, auto& mine) { return x.back().begin < mine.front().begin; }));
  }
  const auto wait = [&](std::int64_t transpoint, const std::vector<bool>& only_sends) {
    bool keys_cross = false;
    for (std::size_t r = 1; r < ranks; ++r) keys_cross |= segments[r].front().begin < transpoint;
    const double last = *std::max_element(time.begin(), time.end());
    for (std::size_t r = 0; r < ranks; ++r)
      if (!only_sends[r] || keys_cross || c.train.device == "cpu") time[r] = last;
  };
  const auto mix = [&](std::int64_t transpoint, double Seconds::*direction) {
    for (std::size_t r = 0; r < ranks; ++r) time[r] += mixing.at(transpoint)[r].*direction;
  };
  const Seconds rest = mixer_rest_seconds(c.model, share.machine, rank_tokens(c), c.parallel.tp, again(c));
  const Seconds mlp = mlp_time(share).compute;
  const Seconds embedding = embedding_time(share).compute, head = head_time(share).compute;
  add(embedding.forward);
  std::size_t mixer = 0;
  for (std::int64_t i = 0; i < c.model.num_layers; ++i)
    if (c.model.kind(i) == 'T') {
      add(rest.forward),
          wait(transpoints[mixer], is_first);  // most summaries are made before ranks attend and scan
      mix(transpoints[mixer++], &Seconds::forward);
    } else {
      add(mlp.forward);
    }
  add(head.total());
  const auto late = late_head_rank(c.model, share.layout, transpoints, c.parallel.tp, c.parallel.pp,
                                   c.train.device == "cuda");
  const double weights =
      late ? share.machine.gemm(real(c.model.vocab_size), real(c.model.hidden_size), rank_tokens(c)) *
                 portion[*late]
           : 0;
  if (late) time[*late] -= weights;
  for (std::int64_t i = c.model.num_layers; i-- > 0;)
    if (c.model.kind(i) == 'T') {
      add(rest.backward), mix(transpoints[--mixer], &Seconds::backward);
      wait(transpoints[mixer], is_last);
    } else {
      add(mlp.backward);
    }
  if (late) time[*late] += weights;
  add(embedding.backward);
  return *std::max_element(time.begin(), time.end());
}

/// Kernels of a micro-batch where nobody waits, in the mean of the context ranks.
double even_seconds(const RankShare& share, std::span<const std::int64_t> transpoints,
                    const std::map<std::int64_t, std::vector<Seconds>>& mixing) {
  const Config& c = share.config;
  const double rest =
      mixer_rest_seconds(c.model, share.machine, rank_tokens(c), c.parallel.tp, again(c)).total();
  double sum = embedding_time(share).compute.total() + head_time(share).compute.total() +
               mlp_time(share).compute.total() * real(c.model.num_layers - c.model.num_mixers());
  for (const std::int64_t transpoint : transpoints) sum += rest + mean_of(mixing.at(transpoint)).total();
  return sum;
}

std::map<std::int64_t, std::vector<Seconds>> all_mixing(const RankShare& share,
                                                        std::span<const std::int64_t> transpoints) {
  std::map<std::int64_t, std::vector<Seconds>> mixing;  // many layers share a TransPoint
  for (const std::int64_t transpoint : transpoints)
    if (!mixing.contains(transpoint)) mixing[transpoint] = mixing_by_rank(share, transpoint);
  return mixing;
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
/// and returns their gradients. At most: keys pass beside attention to a rank's own, their gradients beside
/// the scan's, which is not counted on.
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
    seconds += {c.train.device == "cuda" ? 0 : once, once};  // on a GPU beside the convolution
  }
  if (again(c) == Recompute::full) seconds.backward += seconds.forward;
  return seconds;
}

}  // namespace

double element_bytes(const Config& config) {
  return config.train.dtype == "float64" ? 8 : config.train.dtype == "bfloat16" ? 2 : 4;
}
double statistics_bytes(const Config& config) { return config.train.dtype == "float64" ? 8 : 4; }

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
  const Config& c = share.config;
  const auto mixing = all_mixing(share, transpoints);
  // What ranks wait for each other counts where mixers are uneven.
  double uneven = 0;
  std::map<std::int64_t, double> excess;  // of the busiest rank, over the mean
  for (const auto& [transpoint, by_rank] : mixing) {
    double most = 0;
    for (const Seconds& seconds : by_rank) most = std::max(most, seconds.total());
    excess[transpoint] = most - mean_of(by_rank).total();
  }
  for (const std::int64_t transpoint : transpoints) uneven += excess[transpoint];
  const double waited = pass_seconds(share, transpoints, mixing) - even_seconds(share, transpoints, mixing);

  std::map<std::int64_t, LayerTime> mixers;
  const double heads = real(c.model.num_heads) / real(c.parallel.tp), n = real(c.model.qk_head_dim),
               p = real(c.model.v_head_dim);
  for (const auto& [transpoint, by_rank] : mixing) {
    LayerTime& time = mixers[transpoint];
    const Seconds mean = mean_of(by_rank);
    const double more = std::max(waited, 0.0) *
                        (uneven > 0 ? excess[transpoint] / uneven : 1 / real(std::ssize(transpoints)));
    time.compute = mixer_rest_seconds(c.model, share.machine, rank_tokens(c), c.parallel.tp, again(c));
    time.compute += mean.total() > 0 ? mean * (1 + more / mean.total()) : mean;
    time.tp = layer_tp_seconds(share, heads * (2 * n + 2 * p + 1), heads * p);
    time.cp = cp_seconds(share, transpoint);
  }
  const LayerTime mlp = mlp_time(share);
  std::vector<LayerTime> times;
  std::size_t mixer = 0;
  for (std::int64_t i = 0; i < c.model.num_layers; ++i)
    times.push_back(c.model.kind(i) == 'T' ? mixers[transpoints[mixer++]] : mlp);
  return times;
}

double waiting_imbalance(const RankShare& share, std::span<const std::int64_t> transpoints) {
  const auto mixing = all_mixing(share, transpoints);
  const double mean = even_seconds(share, transpoints, mixing);
  return mean > 0 ? pass_seconds(share, transpoints, mixing) / mean : 1;
}

}  // namespace transmamba
