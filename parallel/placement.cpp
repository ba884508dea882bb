#include "parallel/placement.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <string_view>
#include <utility>

#include "core/transpoint.h"
#include "parallel/context/balance.h"
#include "parallel/degrees.h"
#include "parallel/plan/step_time.h"

namespace transmamba {
namespace {

/// How many mixers have a TransPoint.
using Mixers = std::map<std::int64_t, double>;

Mixers mixers_of(const Config& c) {
  Mixers mixers;
  for (const std::int64_t p : resolve_transpoints(c.model, c.train.seq_len)) mixers[p] += 1;
  return mixers;
}

/// Of a run of tokens, by part, while the arguments live: what does not depend on positions, and the mixers
/// of each TransPoint.
PartCosts costs_of_runs(const Config& c, const Machine& machine, const Mixers& mixers, Sharing sharing) {
  const auto tp = std::max<std::int64_t>(1, c.parallel.tp);
  const auto rest_of = [&c, &machine,
                        tp](double tokens) {  // of a sequence's share, as products see a micro-batch
    const auto sequences = static_cast<double>(c.train.micro_batch);
    Seconds rest = mixer_rest_seconds(c.model, machine, tokens * sequences, tp) *
                   static_cast<double>(c.model.num_mixers());
    rest += mlp_seconds(c.model, machine, tokens * sequences, tp) *
            static_cast<double>(c.model.num_layers - c.model.num_mixers());
    rest += embedding_seconds(c.model, machine, tokens * sequences, tp);
    rest += head_seconds(c.model, machine, tokens * sequences, tp);
    return rest.total() / sequences;
  };
  const double tokens = static_cast<double>(c.train.seq_len), all = rest_of(tokens);
  return [&c, &machine, &mixers, rest_of, all, tokens, tp, sharing](Segment s) {
    const double mine = static_cast<double>(s.size());
    std::vector<double> parts{sharing == Sharing::one_segment ? rest_of(mine) : all * mine / tokens};
    for (const auto& [p, count] : mixers)
      parts.push_back(
          count * mixing_seconds(c.model, machine, p, c.train.seq_len, s.begin, s.end, tp, sharing).total());
    return parts;
  };
}

/// Even in every mixer, as its keys, values and states make ranks wait for each other there: mixers of one
/// TransPoint are a part. What does not depend on positions is one more, so that a tenth of a percent of a
/// step is not bought with segments.
ContextLayout balance_mixers(const Config& c, const Machine& machine, const Mixers& mixers) {
  // Calls cost by the segment, and pieces become segments only after they are dealt. Attention's are few.
  Machine per_token = machine;
  const double scan_calls = machine.scan.calls() + 2 * machine.summary.call;
  const double conv_calls = machine.qkv_conv.calls() + machine.qkv_conv.call;  // two forward
  std::vector<double> segment{conv_calls * static_cast<double>(c.model.num_mixers())};
  for (const auto& [p, count] : mixers) segment.push_back(p < c.train.seq_len ? count * scan_calls : 0);
  for (OpCost* op : {&per_token.attention, &per_token.rotation, &per_token.scan, &per_token.summary})
    op->call = op->call_backward = 0;
  const PartCosts cost =
      costs_of_runs(c, per_token, mixers, c.parallel.cp > 1 ? Sharing::segments : Sharing::none);
  return balanced_layout(c.train.seq_len, c.parallel.cp, cost, segment);
}

/// Of the layers of a micro-batch, what ranks say to each other counted.
double seconds(const Config& c, const Machine& machine, const ContextLayout& layout) {
  double sum = 0;
  for (const LayerTime& layer :
       layer_times({c, machine, layout}, resolve_transpoints(c.model, c.train.seq_len)))
    sum += layer.total().total();
  return sum;
}

/// Even ranks are not worth what they say to each other more: where a plain layout is quicker, that one, or
/// one run a rank of different lengths.
ContextLayout quickest(const Config& c, const Machine& machine) {
  const Mixers mixers = mixers_of(c);
  ContextLayout best = balance_mixers(c, machine, mixers);
  const std::int64_t length = c.train.seq_len, cp = c.parallel.cp;
  double quickest = seconds(c, machine, best);
  const auto consider = [&](ContextLayout other) {
    const double then = seconds(c, machine, other);
    if (then < (1 - 1e-9) * quickest) quickest = then, best = std::move(other);
  };
  for (const char* name : {"contiguous", "zigzag", "striped"}) {
    if (length % (name == std::string_view("zigzag") ? 2 * cp : cp) == 0)
      consider(make_layout(name, length, cp, 0, {}));
  }
  const PartCosts cost = costs_of_runs(c, machine, mixers,
                                       cp == 1                    ? Sharing::none
                                       : c.train.device == "cuda" ? Sharing::one_segment
                                                                  : Sharing::segments);
  consider(even_runs(length, cp, [&](Segment s) {
    const std::vector<double> parts = cost(s);
    return std::accumulate(parts.begin(), parts.end(), 0.0);
  }));
  return best;
}

}  // namespace

std::optional<std::size_t> late_head_rank(const ModelConfig& model, const ContextLayout& layout,
                                          std::span<const std::int64_t> transpoints, std::int64_t tp,
                                          std::int64_t pp, bool on_gpu) {
  const auto& ranks = layout.segments;
  if (!on_gpu || !model.tie_embeddings || tp > 1 || pp > 1 || ranks.size() < 2) return {};
  const auto last = std::max_element(ranks.begin(), ranks.end(), [](const auto& a, const auto& b) {
    return a.front().begin < b.front().begin;
  });
  const std::int64_t begin = last->front().begin;
  for (auto other = ranks.begin(); other != ranks.end(); ++other)
    if (other != last && other->back().end > begin) return {};
  if (std::any_of(transpoints.begin(), transpoints.end(), [&](std::int64_t p) { return p > begin; }))
    return {};
  return static_cast<std::size_t>(last - ranks.begin());
}

Machine machine_of(const Config& config) { return Machine::of(config.parallel.machine, config.train.device); }

ContextLayout plan_layout(const Config& c, const Machine& machine) {
  const ParallelConfig& p = c.parallel;
  check_layout(p.cp_layout, c.train.seq_len, p.cp, p.cp_chunk);
  if (p.cp_layout == "balanced") return quickest(c, machine);
  return make_layout(p.cp_layout, c.train.seq_len, p.cp, p.cp_chunk, {});
}

std::vector<Stage> plan_stages(const Config& c, const Machine& machine, const ContextLayout& layout) {
  const RankShare share{c, machine, layout};
  PipelineLoad load;
  for (const LayerTime& layer : layer_times(share, resolve_transpoints(c.model, c.train.seq_len)))
    load.layer.push_back(layer.total());
  load.embedding = embedding_time(share).total();
  load.head = head_time(share).total();
  load.transfer = transfer_time(share);
  load.pp = static_cast<int>(c.parallel.pp);
  load.chunks = static_cast<int>(c.parallel.virtual_stages);
  load.micro_batches = micro_batches(c, c.parallel);
  return quickest_partition(load);
}

Placement place(const Config& config, const Mesh& mesh) {
  const Machine machine = machine_of(config);
  const ContextLayout layout = plan_layout(config, machine);
  return {&mesh, plan_stages(config, machine, layout), mesh.cp().size() > 1 ? layout : ContextLayout()};
}

}  // namespace transmamba
