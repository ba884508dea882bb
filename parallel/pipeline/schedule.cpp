#include "parallel/pipeline/schedule.h"

#include <algorithm>

#include "kernels/check.h"
#include "parallel/would_work.h"

namespace transmamba {
namespace {

constexpr auto kWhere = "pipeline";

void check_sizes(int pp, int chunks, std::int64_t micro_batches) {
  check(pp >= 1 && chunks >= 1 && micro_batches >= 1, kWhere,
        "a schedule needs at least one rank, chunk and micro-batch, got pp {}, chunks {}, micro-batches {}",
        pp, chunks, micro_batches);
}

/// Forwards of one rank: groups of pp micro-batches go through its chunks one after the other, so that the
/// first of a group comes back to rank 0 as its last leaves. The last group may be smaller. Backwards are the
/// same with the chunks in reverse.
std::vector<Action> in_groups(Action::Kind kind, int pp, int chunks, std::int64_t micro_batches) {
  std::vector<Action> order;
  order.reserve(static_cast<std::size_t>(chunks * micro_batches));
  for (std::int64_t first = 0; first < micro_batches; first += pp)
    for (int i = 0; i < chunks; ++i)
      for (std::int64_t m = first; m < std::min(first + pp, micro_batches); ++m)
        order.push_back({kind, kind == Action::Kind::forward ? i : chunks - 1 - i, m});
  return order;
}

}  // namespace

Schedule one_forward_one_backward(int pp, int chunks, std::int64_t micro_batches) {
  check_sizes(pp, chunks, micro_batches);
  if (chunks > 1 && micro_batches % pp != 0)
    fail(kWhere,
         "interleaving (parallel.virtual_stages = {}) deals micro-batches in groups of parallel.pp = {}, but "
         "{} micro-batches a step (train.global_batch / train.micro_batch / dp) are no multiple of it; the "
         "nearest that would do: {}",
         chunks, pp, micro_batches, nearest_multiples(micro_batches, pp));
  Schedule schedule{chunks, micro_batches, /*has_backward=*/true, {}};
  const std::vector<Action> forwards = in_groups(Action::Kind::forward, pp, chunks, micro_batches);
  const std::vector<Action> backwards = in_groups(Action::Kind::backward, pp, chunks, micro_batches);
  for (int rank = 0; rank < pp; ++rank) {
    // As many forwards ahead as it takes until the first backward arrives. Interleaved, twice a rank's
    // distance from the last, as in Megatron, so that a rank's forward and backward sends meet its
    // neighbours' in pairs.
    const std::int64_t distance = pp - rank - 1;
    const std::int64_t wanted = chunks == 1 ? distance : 2 * distance + std::int64_t{chunks - 1} * pp;
    const std::size_t ahead = std::min(static_cast<std::size_t>(wanted), forwards.size());
    std::vector<Action>& order = schedule.ranks.emplace_back();
    order.reserve(2 * forwards.size());
    for (std::size_t i = 0; i < forwards.size() + ahead; ++i) {
      if (i < forwards.size()) order.push_back(forwards[i]);
      if (i >= ahead) order.push_back(backwards[i - ahead]);
    }
  }
  return schedule;
}

Schedule forward_only(int pp, int chunks, std::int64_t micro_batches) {
  check_sizes(pp, chunks, micro_batches);
  const std::vector<Action> forwards = in_groups(Action::Kind::forward, pp, chunks, micro_batches);
  return {chunks, micro_batches, /*has_backward=*/false,
          std::vector<std::vector<Action>>(static_cast<std::size_t>(pp), forwards)};
}

}  // namespace transmamba
