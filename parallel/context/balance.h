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
};

/// Cuts `tokens` tokens (a multiple of `ranks`) in equal pieces. Few pieces are tried first: about 1, 2, 4, 8
/// and 16 a rank, as divisors of its tokens allow. The first deal within 1 % of even is taken, or else the
/// best. Ranks are numbered by their first piece. Deterministic.
Deal balance(std::int64_t tokens, std::int64_t ranks, const PartCosts& cost);

}  // namespace transmamba
