#include "parallel/context/balance.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <utility>

namespace transmamba {
namespace {

constexpr double kEven = 1.01;            // within 1 % of even is not worth more segments
constexpr std::int64_t kMostPieces = 32;  // a rank's; more segments cost more than they balance
constexpr int kMostSwaps = 1024;          // keeps hundreds of ranks quick; a few ranks need some dozens

using Costs = std::vector<double>;  // one a part

/// Pieces of each rank and what they cost, part by part.
struct Hands {
  std::vector<std::vector<std::size_t>> pieces;
  std::vector<Costs> sum;
};

double total(const Costs& costs) { return std::accumulate(costs.begin(), costs.end(), 0.0); }

Hands empty_hands(std::size_t ranks, std::size_t parts) {
  return {std::vector<std::vector<std::size_t>>(ranks), std::vector<Costs>(ranks, Costs(parts, 0.0))};
}

void give(Hands& hands, std::size_t rank, std::size_t i, const Costs& piece) {
  hands.pieces[rank].push_back(i);
  for (std::size_t k = 0; k < piece.size(); ++k) hands.sum[rank][k] += piece[k];
}

/// Longest processing time first: the dearest piece left goes to the cheapest rank with room.
Hands deal_dearest_first(const std::vector<Costs>& piece, std::size_t ranks) {
  Hands hands = empty_hands(ranks, piece[0].size());
  Costs all(ranks, 0.0), whole;
  for (const Costs& costs : piece) whole.push_back(total(costs));
  std::vector<std::size_t> order(piece.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t i, std::size_t j) { return whole[i] > whole[j]; });
  for (const std::size_t i : order) {
    std::size_t to = ranks;
    for (std::size_t r = 0; r < ranks; ++r)
      if (hands.pieces[r].size() < piece.size() / ranks && (to == ranks || all[r] < all[to])) to = r;
    give(hands, to, i, piece[i]);
    all[to] += whole[i];
  }
  return hands;
}

/// Forth and back, as `striped`: near even in every part, as neighbours cost about the same in each.
Hands deal_in_turn(const std::vector<Costs>& piece, std::size_t ranks) {
  Hands hands = empty_hands(ranks, piece[0].size());
  for (std::size_t i = 0; i < piece.size(); ++i) {
    const std::size_t place = i % (2 * ranks);
    give(hands, place < ranks ? place : 2 * ranks - 1 - place, i, piece[i]);
  }
  return hands;
}

/// The three ranks that cost most in a part: any two ranks may change, and the maximum over the others is
/// known.
struct Busiest {
  std::array<std::size_t, 3> rank{};
  std::array<double, 3> cost{};
  double without(std::size_t a, std::size_t b) const {
    for (std::size_t i = 0; i < 3; ++i)
      if (rank[i] != a && rank[i] != b) return cost[i];
    return 0;
  }
};

std::vector<Busiest> busiest_by_part(const Hands& hands) {
  const std::size_t parts = hands.sum[0].size(), ranks = hands.sum.size();
  std::vector<Busiest> busiest(parts);
  for (std::size_t k = 0; k < parts; ++k) {
    Busiest& b = busiest[k];
    b.rank.fill(ranks), b.cost.fill(-1);
    for (std::size_t r = 0; r < ranks; ++r) {
      std::size_t at = 3;
      while (at > 0 && hands.sum[r][k] > b.cost[at - 1]) --at;
      for (std::size_t i = 2; i > at; --i) b.rank[i] = b.rank[i - 1], b.cost[i] = b.cost[i - 1];
      if (at < 3) b.rank[at] = r, b.cost[at] = hands.sum[r][k];
    }
    // With fewer than three ranks the empty places say that nobody else costs anything.
    for (double& cost : b.cost) cost = std::max(cost, 0.0);
  }
  return busiest;
}

/// Sum over parts of the busiest rank's cost.
double waiting(const Hands& hands) {
  double sum = 0;
  for (const Busiest& b : busiest_by_part(hands)) sum += b.cost[0];
  return sum;
}

/// The same with what segments cost, which are pieces that do not touch.
double waiting(Hands hands, const Costs& segment) {
  for (std::size_t r = 0; r < hands.pieces.size() && !segment.empty(); ++r) {
    std::vector<std::size_t>& mine = hands.pieces[r];
    std::sort(mine.begin(), mine.end());
    double segments = 0;
    for (std::size_t i = 0; i < mine.size(); ++i) segments += i == 0 || mine[i] != mine[i - 1] + 1;
    for (std::size_t k = 0; k < segment.size(); ++k) hands.sum[r][k] += segments * segment[k];
  }
  return waiting(hands);
}

/// Swaps a piece of a rank that is the busiest in some part for one of another rank, the best such swap
/// first, as long as that helps.
void swap_while_it_helps(const std::vector<Costs>& piece, Hands& hands) {
  const std::size_t parts = piece[0].size(), ranks = hands.sum.size();
  for (int swaps = 0; swaps < kMostSwaps; ++swaps) {
    const std::vector<Busiest> busiest = busiest_by_part(hands);
    double now = 0;
    std::vector<bool> is_busiest(ranks, false);
    for (const Busiest& b : busiest) now += b.cost[0], is_busiest[b.rank[0]] = true;
    double best = now * (1 - 1e-9);
    std::size_t from = ranks, to = ranks, mine = 0, theirs = 0;
    for (std::size_t a = 0; a < ranks; ++a) {
      if (!is_busiest[a]) continue;
      for (std::size_t b = 0; b < ranks; ++b) {
        if (a == b) continue;
        for (std::size_t i = 0; i < hands.pieces[a].size(); ++i) {
          for (std::size_t j = 0; j < hands.pieces[b].size(); ++j) {
            const Costs &x = piece[hands.pieces[a][i]], &y = piece[hands.pieces[b][j]];
            double then = 0;
            for (std::size_t k = 0; k < parts && then < best; ++k)
              then += std::max(
                  {busiest[k].without(a, b), hands.sum[a][k] - x[k] + y[k], hands.sum[b][k] + x[k] - y[k]});
            if (then < best) best = then, from = a, to = b, mine = i, theirs = j;
          }
        }
      }
    }
    if (from == ranks) return;
    std::size_t &i = hands.pieces[from][mine], &j = hands.pieces[to][theirs];
    for (std::size_t k = 0; k < parts; ++k) {
      const double moved = piece[i][k] - piece[j][k];
      hands.sum[from][k] -= moved;
      hands.sum[to][k] += moved;
    }
    std::swap(i, j);
  }
}

Hands deal_pieces(const std::vector<Costs>& piece, std::size_t ranks) {
  Hands hands = deal_dearest_first(piece, ranks);
  swap_while_it_helps(piece, hands);
  if (piece[0].size() > 1) {  // by one part alone, dearest first has nothing to be improved
    Hands in_turn = deal_in_turn(piece, ranks);
    swap_while_it_helps(piece, in_turn);
    if (waiting(in_turn) < waiting(hands) * (1 - 1e-9)) hands = std::move(in_turn);
  }
  return hands;
}

/// As zigzag, every rank has one run of the first tokens that are left and one of the last, but as long as
/// makes all parts together cost the same.
Hands deal_two_runs(const std::vector<Costs>& piece, std::size_t ranks) {
  Hands hands = empty_hands(ranks, piece[0].size());
  std::vector<double> before(1, 0.0);  // cost of the pieces before each
  for (const Costs& costs : piece) before.push_back(before.back() + total(costs));
  const std::size_t each = piece.size() / ranks;
  std::size_t begin = 0, end = piece.size();
  for (std::size_t r = 0; r < ranks; ++r) {
    const auto error = [&](std::size_t early) {
      const double mine = before[begin + early] - before[begin] + before[end] - before[end - each + early];
      return std::abs(mine - before.back() / static_cast<double>(ranks));
    };
    std::size_t early = each;  // one run, if that is as good
    for (std::size_t i = each; i-- > 0;)
      if (error(i) < error(early) - 1e-9 * before.back()) early = i;
    for (std::size_t i = 0; i < early; ++i) give(hands, r, begin + i, piece[begin + i]);
    for (std::size_t i = end - (each - early); i < end; ++i) give(hands, r, i, piece[i]);
    begin += early, end -= each - early;
  }
  return hands;
}

/// Ranks are numbered by their first piece, so that equal costs give the contiguous layout, and linear ones
/// the zigzag.
Deal as_deal(Hands hands, std::size_t pieces, const Costs& segment) {
  Deal deal;
  double all = 0;
  for (const Costs& costs : hands.sum) all += total(costs);
  if (all > 0) deal.imbalance = waiting(hands) * static_cast<double>(hands.sum.size()) / all;
  deal.waiting = waiting(hands, segment);
  std::sort(hands.pieces.begin(), hands.pieces.end(), [](const auto& a, const auto& b) {
    return *std::min_element(a.begin(), a.end()) < *std::min_element(b.begin(), b.end());
  });
  deal.owner.resize(pieces);
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

/// The most pieces a rank of at least 64 tokens, or of any number where there are few.
std::int64_t fine_count(std::int64_t tokens) {
  std::int64_t count = std::min<std::int64_t>(256, tokens < 1024 ? tokens : tokens / 64);
  while (tokens % count != 0) --count;
  return count;
}

}  // namespace

Deal balance(std::int64_t tokens, std::int64_t ranks, const PartCosts& cost, const Costs& segment) {
  const auto pieces = [&](std::int64_t count) {
    std::vector<Costs> piece;
    const std::int64_t size = tokens / (ranks * count);
    for (std::int64_t i = 0; i < ranks * count; ++i) piece.push_back(cost({i * size, (i + 1) * size}));
    return piece;
  };
  Deal best;
  const auto consider = [&](Hands hands, std::size_t count) {
    Deal deal = as_deal(std::move(hands), count, segment);
    if (best.owner.empty() || deal.waiting < best.waiting * (1 - 1e-9)) best = std::move(deal);
  };
  for (const std::int64_t m : piece_counts(tokens / ranks)) {
    const std::vector<Costs> piece = pieces(m);
    consider(deal_pieces(piece, static_cast<std::size_t>(ranks)), piece.size());
    if (best.imbalance <= kEven) break;
  }
  const std::vector<Costs> fine = pieces(fine_count(tokens / ranks));
  consider(deal_two_runs(fine, static_cast<std::size_t>(ranks)), fine.size());
  return best;
}

}  // namespace transmamba
