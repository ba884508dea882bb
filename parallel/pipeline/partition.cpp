#include "parallel/pipeline/partition.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "kernels/check.h"

namespace transmamba {
namespace {

constexpr auto kWhere = "pipeline";

/// What stage `s` of `stages` costs with layers [begin, end).
struct StageCost {
  std::vector<double> sum;  // of the layers before
  double embedding, head;
  std::size_t stages;

  double operator()(std::size_t s, std::size_t begin, std::size_t end) const {
    return sum[end] - sum[begin] + (s == 0 ? embedding : 0) + (s + 1 == stages ? head : 0);
  }
};

/// Least possible cost of the dearest stage. best[end]: of the stages so far on layers [0, end).
double least_maximum(const StageCost& cost, std::size_t layers) {
  std::vector<double> best(layers + 1, std::numeric_limits<double>::infinity());
  for (std::size_t end = 1; end <= layers; ++end) best[end] = cost(0, 0, end);
  for (std::size_t s = 1; s < cost.stages; ++s) {
    // From the back, in place: what stage s makes of best[end] reads best[begin] of begin < end only.
    for (std::size_t end = layers; end > s; --end) {
      // best[begin] rises with begin and the stage's own cost falls: the least maximum is where they cross.
      std::size_t low = s, high = end - 1;
      while (low < high) {
        const std::size_t middle = (low + high) / 2;
        if (best[middle] >= cost(s, middle, end))
          high = middle;
        else
          low = middle + 1;
      }
      double least = std::max(best[low], cost(s, low, end));
      if (low > s) least = std::min(least, std::max(best[low - 1], cost(s, low - 1, end)));
      best[end] = least;
    }
    std::fill(best.begin(), best.begin() + static_cast<std::ptrdiff_t>(s) + 1,
              std::numeric_limits<double>::infinity());
  }
  return best[layers];
}

/// How uneven a division is: squares of costs, then of layers where costs tie. Its first cut is at `begin`.
struct Unevenness {
  double cost = std::numeric_limits<double>::infinity();
  double layers = 0;
  std::size_t begin = 0;

  bool operator<(const Unevenness& other) const {
    const double rounding = 1e-12 * (cost < other.cost ? cost : other.cost);
    if (cost < other.cost - rounding) return true;
    return !(other.cost < cost - rounding) && layers < other.layers;
  }
};

}  // namespace

std::vector<Stage> partition(std::span<const double> layer, double embedding, double head,
                             std::int64_t stages) {
  const std::size_t n = layer.size(), count = static_cast<std::size_t>(stages);
  check(stages >= 1, kWhere, "expected at least one stage, got {}", stages);
  check(count <= n, kWhere,
        "{} stages (parallel.pp x parallel.virtual_stages) are more than the {} layers of the model "
        "(model.num_layers); each needs one at least",
        stages, n);
  StageCost cost{std::vector<double>(n + 1, 0.0), embedding, head, count};
  std::partial_sum(layer.begin(), layer.end(), cost.sum.begin() + 1);
  const double limit = least_maximum(cost, n) * (1 + 1e-12);

  // Of the divisions whose dearest stage costs no more, the most even one. table[s][end]: of stages 0 .. s on
  // layers [0, end).
  std::vector<std::vector<Unevenness>> table(count, std::vector<Unevenness>(n + 1));
  for (std::size_t s = 0; s < count; ++s) {
    for (std::size_t end = s + 1; end <= n; ++end) {
      for (std::size_t begin = end - 1;; --begin) {
        const double mine = cost(s, begin, end);
        if (mine > limit || (s > 0 && begin < s)) break;  // more layers only cost more
        if (s == 0 ? begin == 0 : table[s - 1][begin].cost < std::numeric_limits<double>::infinity()) {
          const Unevenness before = s == 0 ? Unevenness{0, 0, 0} : table[s - 1][begin];
          const auto layers = static_cast<double>(end - begin);
          const Unevenness all{before.cost + mine * mine, before.layers + layers * layers, begin};
          if (all < table[s][end]) table[s][end] = all;
        }
        if (begin == 0) break;
      }
    }
  }

  std::vector<Stage> result(count);
  std::size_t end = n;
  for (std::size_t s = count; s-- > 0;) {
    const std::size_t begin = table[s][end].begin;
    result[s] = {static_cast<std::int64_t>(begin), static_cast<std::int64_t>(end), s == 0, s + 1 == count};
    end = begin;
  }
  return result;
}

}  // namespace transmamba
