#include "parallel/degrees.h"

#include <fmt/format.h>

#include <vector>

#include "kernels/check.h"
#include "parallel/context/layout.h"
#include "parallel/would_work.h"

namespace transmamba {
namespace {

constexpr auto kWhere = "parallel";

std::string divisors(std::int64_t number) {
  std::vector<std::int64_t> found;
  for (std::int64_t x = 1; x <= number && found.size() < 32; ++x)
    if (number % x == 0) found.push_back(x);
  return fmt::format("{}", fmt::join(found, ", "));
}

void check_tensor(const Config& c, std::int64_t tp) {
  if (c.model.num_heads % tp != 0)
    fail(kWhere, "parallel.tp = {} does not divide model.num_heads = {}; it may be one of {}", tp,
         c.model.num_heads, divisors(c.model.num_heads));
  const bool has_mlp = c.model.num_mixers() < c.model.num_layers;
  if (has_mlp && c.model.ffn_hidden_size % tp != 0)
    fail(kWhere, "parallel.tp = {} does not divide model.ffn_hidden_size = {}; the nearest that would do: {}",
         tp, c.model.ffn_hidden_size, nearest_multiples(c.model.ffn_hidden_size, tp));
}

void check_pipeline(const Config& c, const ParallelConfig& p) {
  const std::int64_t stages = p.pp * p.virtual_stages;
  check(
      p.virtual_stages == 1 || p.pp > 1, kWhere,
      "parallel.virtual_stages = {} interleaves the stages of a pipeline, but parallel.pp = 1; it may be 1, "
      "or pp above 1",
      p.virtual_stages);
  const std::int64_t layers = c.model.num_layers;
  const std::string would_do =
      p.pp <= layers ? fmt::format("virtual_stages may be at most {} with pp = {}", layers / p.pp, p.pp)
                     : fmt::format("pp may be at most {} with virtual_stages = 1", layers);
  check(stages <= layers, kWhere,
        "parallel.pp x virtual_stages = {} x {} = {} stages are more than model.num_layers = {}; {}", p.pp,
        p.virtual_stages, stages, layers, would_do);
}

void check_batch(const Config& c, const ParallelConfig& p) {
  const std::int64_t micro = c.train.micro_batch, unit = micro * p.dp, batch = c.train.global_batch;
  if (batch % unit != 0)
    fail(kWhere,
         "train.global_batch = {} is no multiple of train.micro_batch x dp = {} x {} = {}; nearest "
         "global_batch that would do: {}",
         batch, micro, p.dp, unit, nearest_multiples(batch, unit));
  if (p.virtual_stages > 1 && batch / unit % p.pp != 0)
    fail(kWhere,
         "parallel.virtual_stages = {} deals micro-batches in groups of parallel.pp = {}, but a step has "
         "train.global_batch / (micro_batch x dp) = {} / ({} x {}) = {} of them; nearest global_batch that "
         "would do: {}",
         p.virtual_stages, p.pp, batch, micro, p.dp, batch / unit, nearest_multiples(batch, unit * p.pp));
}

}  // namespace

void check_mesh(const ParallelConfig& p, std::int64_t ranks) {
  const std::int64_t model = p.tp * p.cp * p.pp;
  if (ranks % model != 0)
    fail(kWhere,
         "parallel.tp x cp x pp = {} x {} x {} = {} does not divide the {} ranks; it may be one of {}; or "
         "start {} ranks",
         p.tp, p.cp, p.pp, model, ranks, divisors(ranks), nearest_multiples(ranks, model));
  check(
      p.dp == 0 || model * p.dp == ranks, kWhere,
      "parallel.tp x cp x pp x dp = {} x {} x {} x {} = {}, but there are {} ranks; parallel.dp = {} (or 0) "
      "would do, or {} ranks",
      p.tp, p.cp, p.pp, p.dp, model * p.dp, ranks, ranks / model, model * p.dp);
}

ParallelConfig resolve_parallel(const Config& config, int ranks) {
  check(ranks >= 1, kWhere, "expected at least one rank, got {}", ranks);
  ParallelConfig resolved = config.parallel;
  check_mesh(resolved, ranks);
  resolved.dp = ranks / (resolved.tp * resolved.cp * resolved.pp);
  check_layout(resolved.cp_layout, config.train.seq_len, resolved.cp, resolved.cp_chunk);
  check_tensor(config, resolved.tp);
  check_pipeline(config, resolved);
  check_batch(config, resolved);
  return resolved;
}

std::int64_t micro_batches(const Config& config, const ParallelConfig& resolved) {
  return config.train.global_batch / (config.train.micro_batch * resolved.dp);
}

}  // namespace transmamba
