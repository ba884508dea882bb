// Deals equal pieces of a sequence to ranks so that every rank gets as many, and about the same cost.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "parallel/context/layout.h"

namespace transmamba {

struct Deal {
  std::vector<std::int64_t> owner;  ///< rank of each piece, in the order of the sequence
  double imbalance = 1;             ///< sum over parts of the busiest rank's cost, over that of the means
  double waiting = 0;               ///< that sum, with what segments cost
};

/// Cuts `tokens` tokens (a multiple of `ranks`) in equal pieces. Few pieces are tried first: about 1, 2, 4, 8
/// and 16 a rank, as divisors of its tokens allow, until a deal is within 1 % of even; and then two runs a
/// rank, cut where that is even over all parts together. The least `waiting` is taken: every segment of a
/// rank (pieces that touch are one) costs it `segment` more, by part; empty: nothing. Ranks are numbered by
/// their first piece. Deterministic.
Deal balance(std::int64_t tokens, std::int64_t ranks, const PartCosts& cost,
             const std::vector<double>& segment);

}  // namespace transmamba
