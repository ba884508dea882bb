// The prediction, carried on to all of a described cluster.
#include <algorithm>

#include "core/cost_model.h"
#include "parallel/plan/search.h"
#include "tools/scale/report.h"

namespace transmamba {
namespace {

std::vector<int> rank_counts(std::int64_t all) {
  std::vector<int> counts;
  for (std::int64_t n = 1; n < all; n *= 2) counts.push_back(static_cast<int>(n));
  counts.push_back(static_cast<int>(all));
  return counts;
}

}  // namespace

std::vector<CarriedOn> carry_on(const Cluster& cluster, const std::vector<ScaleSize>& sizes,
                                const std::vector<std::string>& modes, int base_ranks) {
  std::vector<CarriedOn> all;
  for (const ScaleSize& size : sizes) {
    MeshSearch search(cluster.machine, {.memory_bytes = cluster.memory_bytes});
    for (const std::string& mode : modes) {
      const auto first = static_cast<std::ptrdiff_t>(all.size());
      for (const int ranks : rank_counts(cluster.ranks())) {
        CarriedOn& c = all.emplace_back();
        c.size = size.name, c.mode = mode, c.ranks = ranks;
        Config config = size.config;
        // Fewer ranks than the base do what one micro-batch a rank allows.
        if (mode == "weak")
          config.train.global_batch =
              std::max(config.train.global_batch * ranks / base_ranks / config.train.micro_batch,
                       std::int64_t{1}) *
              config.train.micro_batch;
        const auto best = search.fastest(config, ranks, c.impossible);
        if (!best) continue;
        c.impossible.clear();
        c.mesh = best->parallel;
        c.global_batch = config.train.global_batch, c.seq_len = config.train.seq_len;
        c.predicted = prediction_of(best->step, best->memory);
        c.flops = training_flops(config.model, c.seq_len, c.global_batch);
        const double seconds = c.predicted.step.total();
        c.mfu = c.flops / seconds / (ranks * cluster.peak_flops);
        const auto base = std::find_if(all.begin() + first, all.end(),
                                       [](const CarriedOn& x) { return x.impossible.empty(); });
        c.efficiency =
            efficiency(c.flops, seconds, ranks, base->flops, base->predicted.step.total(), base->ranks);
      }
    }
  }
  return all;
}

}  // namespace transmamba
