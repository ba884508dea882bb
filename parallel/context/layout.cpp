#include "parallel/context/layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/check.h"
#include "parallel/context/balance.h"
#include "parallel/would_work.h"

namespace transmamba {
namespace {

constexpr auto kWhere = "context";

/// Numbers next to `from` that `accepts` likes, for a message; none where they are far away.
template <class F>
std::string nearest(std::int64_t from, F&& accepts) {
  constexpr std::int64_t kFar = 1 << 20;
  std::vector<std::int64_t> found;
  for (std::int64_t x = from - 1; x >= std::max<std::int64_t>(1, from - kFar) && found.empty(); --x)
    if (accepts(x)) found.push_back(x);
  const std::size_t below = found.size();
  for (std::int64_t x = from + 1; x <= std::min(8 * from, from + kFar) && found.size() == below; ++x)
    if (accepts(x)) found.push_back(x);
  return found.empty() ? "none" : fmt::format("{}", fmt::join(found, " and "));
}

std::int64_t default_chunk(std::int64_t seq_len, std::int64_t cp) {
  std::int64_t chunk = std::max<std::int64_t>(1, seq_len / (8 * cp));
  while (seq_len / cp % chunk != 0) --chunk;
  return chunk;
}

/// Runs of `size` tokens; `owner(i)` is the rank of run i. Runs that touch become one segment.
template <class Owner>
ContextLayout deal(std::int64_t seq_len, std::int64_t cp, std::int64_t size, Owner&& owner) {
  ContextLayout layout;
  layout.segments.resize(static_cast<std::size_t>(cp));
  for (std::int64_t i = 0; i < seq_len / size; ++i) {
    std::vector<Segment>& mine = layout.segments[static_cast<std::size_t>(owner(i))];
    if (!mine.empty() && mine.back().end == i * size)
      mine.back().end += size;
    else
      mine.push_back({i * size, (i + 1) * size});
  }
  return layout;
}

/// Place of item i among cp when dealt 0 .. cp-1, cp-1 .. 0, and so on.
std::int64_t snake(std::int64_t i, std::int64_t cp) {
  const std::int64_t place = i % (2 * cp);
  return place < cp ? place : 2 * cp - 1 - place;
}

}  // namespace

std::int64_t ContextLayout::tokens_of(std::size_t rank) const {
  std::int64_t tokens = 0;
  for (const Segment& segment : segments[rank]) tokens += segment.size();
  return tokens;
}

std::int64_t ContextLayout::most_tokens() const {
  std::int64_t most = 0;
  for (std::size_t rank = 0; rank < segments.size(); ++rank) most = std::max(most, tokens_of(rank));
  return most;
}

void check_layout(const std::string& name, std::int64_t seq_len, std::int64_t cp, std::int64_t chunk) {
  check(seq_len >= 1 && cp >= 1 && chunk >= 0, kWhere,
        "expected seq_len and cp of at least 1 and a chunk of at least 0, got seq_len {}, cp {}, chunk {}",
        seq_len, cp, chunk);
  check(name == "contiguous" || name == "zigzag" || name == "striped" || name == "balanced", kWhere,
        "parallel.cp_layout: expected one of contiguous, zigzag, striped, balanced, got \"{}\"", name);
  const auto divides = [&](std::int64_t runs) { return seq_len % runs == 0; };
  if (name == "zigzag" && cp > 1) {
    if (!divides(2 * cp))
      fail(kWhere,
           "the zigzag layout deals runs of train.seq_len / (2 parallel.cp) tokens, but {} is no multiple of "
           "2 x {}; nearest seq_len that would do: {}; nearest cp: {}",
           seq_len, cp, nearest_multiples(seq_len, 2 * cp),
           nearest(cp, [&](std::int64_t x) { return x == 1 || divides(2 * x); }));
    return;
  }
  if (!divides(cp))
    fail(kWhere,
         "the {} layout deals runs of train.seq_len / parallel.cp tokens, but {} is no multiple of {}; "
         "nearest seq_len that would do: {}; nearest cp: {}",
         name, seq_len, cp, nearest_multiples(seq_len, cp), nearest(cp, divides));
  if (name == "striped" && chunk > 0 && !divides(chunk * cp))
    fail(kWhere,
         "the striped layout deals rounds of parallel.cp x parallel.cp_chunk tokens, but train.seq_len = {} "
         "is no multiple of {} x {}; nearest seq_len that would do: {}; nearest cp_chunk: {}",
         seq_len, cp, chunk, nearest_multiples(seq_len, cp * chunk),
         nearest(std::min(chunk, seq_len), [&](std::int64_t x) { return divides(x * cp); }));
}

ContextLayout make_layout(const std::string& name, std::int64_t seq_len, std::int64_t cp, std::int64_t chunk,
                          std::span<const double> cost) {
  check_layout(name, seq_len, cp, chunk);
  if (name == "contiguous" || cp == 1)
    return deal(seq_len, cp, seq_len / cp, [](std::int64_t i) { return i; });
  if (name == "zigzag")
    return deal(seq_len, cp, seq_len / (2 * cp), [&](std::int64_t i) { return snake(i, cp); });
  if (name == "striped") {
    const std::int64_t size = chunk > 0 ? chunk : default_chunk(seq_len, cp);
    return deal(seq_len, cp, size, [&](std::int64_t i) { return snake(i, cp); });
  }
  check(static_cast<std::int64_t>(cost.size()) == seq_len, kWhere,
        "the balanced layout: expected the cost of {} tokens, got {}", seq_len, cost.size());
  const auto bad = std::find_if(cost.begin(), cost.end(), [](double c) { return !(c >= 0 && c < INFINITY); });
  check(bad == cost.end(), kWhere, "the cost of token {}: expected a finite number of at least 0, got {}",
        bad - cost.begin(), bad == cost.end() ? 0 : *bad);
  return balanced_layout(seq_len, cp, [&](Segment s) {
    return std::vector<double>{std::accumulate(cost.data() + s.begin, cost.data() + s.end, 0.0)};
  });
}

ContextLayout balanced_layout(std::int64_t seq_len, std::int64_t cp, const PartCosts& cost,
                              const std::vector<double>& segment) {
  check_layout("balanced", seq_len, cp, 0);
  const Deal best = balance(seq_len, cp, cost, segment);
  return deal(seq_len, cp, seq_len / static_cast<std::int64_t>(best.owner.size()),
              [&](std::int64_t i) { return best.owner[static_cast<std::size_t>(i)]; });
}

ContextLayout even_runs(std::int64_t seq_len, std::int64_t cp, const std::function<double(Segment)>& cost) {
  constexpr std::int64_t kMostGrain = 128;
  constexpr int kHalvings = 40;
  check_layout("balanced", seq_len, cp, 0);
  std::int64_t grain = 1;
  while (grain < kMostGrain && 128 * grain * cp <= seq_len) grain *= 2;
  // Each rank takes as many tokens as it may, but leaves some for those after it; the last one all that are
  // left.
  const auto deal_up_to = [&](double most) {
    ContextLayout layout;
    for (std::int64_t rank = 0, begin = 0; rank < cp; ++rank) {
      std::int64_t fits = 1, too_many = (seq_len - begin) / grain - (cp - 1 - rank) + 1;
      while (too_many - fits > 1) {
        const std::int64_t half = (fits + too_many) / 2;
        (cost({begin, begin + half * grain}) <= most ? fits : too_many) = half;
      }
      const std::int64_t end = rank + 1 < cp ? begin + fits * grain : seq_len;
      layout.segments.push_back({{begin, end}});
      begin = end;
    }
    return layout;
  };
  double low = 0, high = cost({0, seq_len});
  for (int i = 0; i < kHalvings; ++i) {
    const double most = (low + high) / 2;
    (cost(deal_up_to(most).segments.back().back()) <= most ? high : low) = most;
  }
  return deal_up_to(high);
}

double imbalance(const ContextLayout& layout, std::span<const double> cost) {
  std::int64_t tokens = 0;
  for (std::size_t rank = 0; rank < layout.segments.size(); ++rank) tokens += layout.tokens_of(rank);
  check(tokens == static_cast<std::int64_t>(cost.size()), kWhere,
        "imbalance: a layout of {} tokens and the cost of {}", tokens, cost.size());
  double largest = 0, total = 0;
  for (const std::vector<Segment>& mine : layout.segments) {
    double sum = 0;
    for (const Segment& s : mine) sum = std::accumulate(&cost[0] + s.begin, &cost[0] + s.end, sum);
    largest = std::max(largest, sum);
    total += sum;
  }
  return total > 0 ? largest * static_cast<double>(layout.segments.size()) / total : 1;
}

}  // namespace transmamba
