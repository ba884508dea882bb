#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <optional>

#include "kernels/check.h"
#include "launch/measure.h"

namespace transmamba {
namespace {

using Vector = std::vector<double>;

/// Solves a small symmetric system; nothing where it is singular.
std::optional<Vector> solve(std::vector<Vector> a, Vector b) {
  const std::size_t n = b.size();
  for (std::size_t k = 0; k < n; ++k) {
    std::size_t pivot = k;
    for (std::size_t i = k + 1; i < n; ++i)
      if (std::abs(a[i][k]) > std::abs(a[pivot][k])) pivot = i;
    if (!(std::abs(a[pivot][k]) > 1e-12)) return std::nullopt;
    std::swap(a[k], a[pivot]), std::swap(b[k], b[pivot]);
    for (std::size_t i = k + 1; i < n; ++i) {
      const double factor = a[i][k] / a[k][k];
      for (std::size_t j = k; j < n; ++j) a[i][j] -= factor * a[k][j];
      b[i] -= factor * b[k];
    }
  }
  for (std::size_t k = n; k-- > 0;) {
    for (std::size_t j = k + 1; j < n; ++j) b[k] -= a[k][j] * b[j];
    b[k] /= a[k][k];
  }
  return b;
}

}  // namespace

std::string format_checks(const std::vector<FitCheck>& checks) {
  std::string text = fmt::format("{:<48} {:>13} {:>13} {:>10}\n", "sizes that were not fitted", "measured",
                                 "predicted", "off by");
  for (const FitCheck& c : checks)
    text += fmt::format("{:<48} {:>10.1f} us {:>10.1f} us {:>+8.0f} %\n", c.what, 1e6 * c.measured,
                        1e6 * c.predicted, 100 * (c.predicted / c.measured - 1));
  return text;
}

std::vector<double> fit(const std::vector<Vector>& rows, const Vector& seconds) {
  check(!rows.empty() && rows.size() == seconds.size() && rows[0].size() <= 3, "fit",
        "expected at most 3 columns and as many rows as seconds, got {} rows and {} seconds", rows.size(),
        seconds.size());
  const std::size_t columns = rows[0].size();
  Vector best(columns, 0.0), scale(columns, 0.0);
  // Columns of like size, or the pivots of a system in seconds, flops and bytes would mean nothing.
  for (std::size_t j = 0; j < columns; ++j)
    for (std::size_t i = 0; i < rows.size(); ++i) scale[j] = std::max(scale[j], rows[i][j] / seconds[i]);
  double least = std::numeric_limits<double>::infinity();
  // The best fit with no coefficient below 0 has some at 0 and is an unbounded fit of the others: try all.
  for (unsigned chosen = 1; chosen < (1U << columns); ++chosen) {
    std::vector<std::size_t> used;
    for (std::size_t j = 0; j < columns; ++j)
      if ((chosen >> j & 1U) != 0 && scale[j] > 0) used.push_back(j);
    std::vector<Vector> a(used.size(), Vector(used.size(), 0.0));
    Vector b(used.size(), 0.0);
    for (std::size_t i = 0; i < rows.size(); ++i)
      for (std::size_t x = 0; x < used.size(); ++x) {
        const double at_x = rows[i][used[x]] / seconds[i] / scale[used[x]];
        b[x] += at_x;
        for (std::size_t y = 0; y < used.size(); ++y)
          a[x][y] += at_x * rows[i][used[y]] / seconds[i] / scale[used[y]];
      }
    const std::optional<Vector> solution = solve(a, b);
    if (!solution) continue;
    Vector all(columns, 0.0);
    bool feasible = true;
    for (std::size_t x = 0; x < used.size(); ++x) {
      all[used[x]] = (*solution)[x] / scale[used[x]];
      feasible = feasible && all[used[x]] >= 0;
    }
    if (!feasible) continue;
    double error = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      double predicted = 0;
      for (std::size_t j = 0; j < columns; ++j) predicted += all[j] * rows[i][j];
      error += std::pow(predicted / seconds[i] - 1, 2);
    }
    if (error < least) least = error, best = all;
  }
  return best;
}

}  // namespace transmamba
