#include "parallel/context/balance.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>

namespace transmamba {
namespace {

constexpr double kEven = 1.01;             // within 1 % of even is not worth more segments
constexpr std::int64_t kMostPieces = 32;   // a rank's; more segments cost more than they balance
constexpr std::int64_t kMostSwaps = 4096;  // never reached with sums that shrink by more than rounding

/// Pieces of each rank and what they cost.
struct Hands {
  std::vector<std::vector<std::size_t>> pieces;
  std::vector<double> sum;
};

std::size_t busiest(const Hands& hands) {
  return static_cast<std::size_t>(std::max_element(hands.sum.begin(), hands.sum.end()) - hands.sum.begin());
}

/// Longest processing time first: the dearest piece left goes to the cheapest rank with room.
Hands deal_dearest_first(const std::vector<double>& piece, std::size_t ranks) {
  const std::size_t each = piece.size() / ranks;
  Hands hands{std::vector<std::vector<std::size_t>>(ranks), std::vector<double>(ranks, 0.0)};
  std::vector<std::size_t> order(piece.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t i, std::size_t j) { return piece[i] > piece[j]; });
  for (const std::size_t i : order) {
    std::size_t to = ranks;
    for (std::size_t r = 0; r < ranks; ++r)
      if (hands.pieces[r].size() < each && (to == ranks || hands.sum[r] < hands.sum[to])) to = r;
    hands.pieces[to].push_back(i);
    hands.sum[to] += piece[i];
  }
  return hands;
}

/// Swaps a piece of the busiest rank for a cheaper one of another, as long as that helps the busier of the
/// two.
void swap_while_it_helps(const std::vector<double>& piece, Hands& hands) {
  const double mean =
      std::accumulate(hands.sum.begin(), hands.sum.end(), 0.0) / static_cast<double>(hands.sum.size());
  for (std::int64_t swaps = 0; swaps < kMostSwaps; ++swaps) {
    const std::size_t from = busiest(hands);
    double best = hands.sum[from] - 1e-9 * mean;
    std::size_t to = from, mine = 0, theirs = 0;
    for (std::size_t r = 0; r < hands.sum.size(); ++r) {
      if (r == from) continue;
      for (std::size_t i = 0; i < hands.pieces[from].size(); ++i) {
        for (std::size_t j = 0; j < hands.pieces[r].size(); ++j) {
          const double moved = piece[hands.pieces[from][i]] - piece[hands.pieces[r][j]];
          const double larger = std::max(hands.sum[from] - moved, hands.sum[r] + moved);
          if (larger < best) best = larger, to = r, mine = i, theirs = j;
        }
      }
    }
    if (to == from) return;
    const double moved = piece[hands.pieces[from][mine]] - piece[hands.pieces[to][theirs]];
    hands.sum[from] -= moved;
    hands.sum[to] += moved;
    std::swap(hands.pieces[from][mine], hands.pieces[to][theirs]);
  }
}

Deal deal_pieces(const std::vector<double>& piece, std::int64_t ranks) {
  Hands hands = deal_dearest_first(piece, static_cast<std::size_t>(ranks));
  swap_while_it_helps(piece, hands);
  Deal deal;
  const double total = std::accumulate(hands.sum.begin(), hands.sum.end(), 0.0);
  if (total > 0) deal.imbalance = hands.sum[busiest(hands)] * static_cast<double>(ranks) / total;
  // Numbered by their first piece, so that equal costs give the contiguous layout, and linear ones the
  // zigzag.
  std::sort(hands.pieces.begin(), hands.pieces.end(), [](const auto& a, const auto& b) {
    return *std::min_element(a.begin(), a.end()) < *std::min_element(b.begin(), b.end());
  });
  deal.owner.resize(piece.size());
  for (std::size_t r = 0; r < hands.pieces.size(); ++r)
    for (const std::size_t i : hands.pieces[r]) deal.owner[i] = static_cast<std::int64_t>(r);
  return deal;
}

/// About 1, 2, 4, 8, 16: the divisors of `tokens` nearest to them, ascending.
std::vector<std::int64_t> piece_counts(std::int64_t tokens) {
  std::vector<std::int64_t> counts;
  for (const std::int64_t wanted : {1, 2, 4, 8, 16}) {
    std::int64_t nearest = 1;
    for (std::int64_t m = 1; m <= std::min(kMostPieces, tokens); ++m)
      if (tokens % m == 0 && std::abs(m - wanted) < std::abs(nearest - wanted)) nearest = m;
    if (counts.empty() || nearest > counts.back()) counts.push_back(nearest);
  }
  return counts;
}

}  // namespace

Deal balance(std::span<const double> cost, std::int64_t ranks) {
  const auto tokens = static_cast<std::int64_t>(cost.size());
  Deal best;
  for (const std::int64_t m : piece_counts(tokens / ranks)) {
    const std::int64_t size = tokens / (ranks * m);
    std::vector<double> piece(static_cast<std::size_t>(ranks * m));
    for (std::size_t i = 0; i < piece.size(); ++i) {
      const double* begin = cost.data() + static_cast<std::int64_t>(i) * size;
      piece[i] = std::accumulate(begin, begin + size, 0.0);
    }
    Deal deal = deal_pieces(piece, ranks);
    if (best.owner.empty() || deal.imbalance < best.imbalance - 1e-9) best = std::move(deal);
    if (best.imbalance <= kEven) break;
  }
  return best;
}

}  // namespace transmamba
