// Context parallelism deals the tokens of a sequence to ranks: which rank holds which runs of tokens.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace transmamba {

/// Tokens [begin, end) of a sequence.
struct Segment {
  std::int64_t begin = 0, end = 0;
  std::int64_t size() const { return end - begin; }
  bool operator==(const Segment&) const = default;
};

/// segments[rank]: in ascending order, never two that touch, none empty. Every token has one rank, and every
/// rank has some.
struct ContextLayout {
  std::vector<std::vector<Segment>> segments;
  std::int64_t tokens_of(std::size_t rank) const;
  std::int64_t most_tokens() const;  ///< of a rank; all have as many but in even_runs()
  bool operator==(const ContextLayout&) const = default;
};

/// `name`: contiguous (rank r holds run r), zigzag (of 2 cp runs, r and 2 cp - 1 - r), striped (runs of
/// `chunk` tokens dealt 0 .. cp-1, cp-1 .. 0, and so on; chunk 0: the largest divisor of seq_len / cp up to
/// seq_len / (8 cp), at least 1) or balanced (by `cost`, the cost of the token at each position over all
/// layers: the ranks' sums are as equal as few segments allow). Only balanced reads `cost`, one number >= 0 a
/// token. Deterministic: every rank computes the same. Throws Error with the numbers that would work where
/// seq_len cannot be dealt so: contiguous and balanced need a multiple of cp, zigzag of 2 cp, striped of
/// chunk * cp.
ContextLayout make_layout(const std::string& name, std::int64_t seq_len, std::int64_t cp, std::int64_t chunk,
                          std::span<const double> cost);

/// Costs of a run of tokens in parts, each of at least 0. Ranks wait for each other between parts: for a
/// layer's keys, values and states, say.
using PartCosts = std::function<std::vector<double>(Segment)>;

/// As make_layout's balanced, but even in every part: the sum over parts of the busiest rank's cost is as
/// small as few segments allow. Ranks whose costs are even over all parts together may still wait in each.
/// `segment`: what a segment costs its rank beside its tokens, by part; empty: nothing.
ContextLayout balanced_layout(std::int64_t seq_len, std::int64_t cp, const PartCosts& cost,
                              const std::vector<double>& segment = {});

/// One run a rank, in order, so long that the dearest costs as little as can be: about all the same, of
/// different numbers of tokens. `cost` of a run, at least 0, does not fall where it gets longer. Runs end at
/// multiples of up to 128 tokens, which kernels like.
ContextLayout even_runs(std::int64_t seq_len, std::int64_t cp, const std::function<double(Segment)>& cost);

/// Throws make_layout's Error, without the work.
void check_layout(const std::string& name, std::int64_t seq_len, std::int64_t cp, std::int64_t chunk);

/// Largest rank's sum of `cost` over the mean: 1 is perfect.
double imbalance(const ContextLayout& layout, std::span<const double> cost);

}  // namespace transmamba
