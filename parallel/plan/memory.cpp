// What a rank's memory holds in a step. The terms are the tensors of Mixer::Saved, Mlp::Saved and
// Model::Saved; letters as in kernels/types.h, with h, f, V and the tokens between layers divided by tp, t by
// cp.
#include <algorithm>

#include "core/cost_model.h"
#include "parallel/plan/plan.h"

namespace transmamba {
namespace {

double real(std::int64_t x) { return static_cast<double>(x); }

struct Sizes {
  double b, t, T, d, h, n, p, f, V, w, tp, cp;
  explicit Sizes(const Config& c)
      : b(real(c.train.micro_batch)),
        t(real(c.train.seq_len) / real(c.parallel.cp)),
        T(real(c.train.seq_len)),
        d(real(c.model.hidden_size)),
        h(real(c.model.num_heads) / real(c.parallel.tp)),
        n(real(c.model.qk_head_dim)),
        p(real(c.model.v_head_dim)),
        f(real(c.model.ffn_hidden_size) / real(c.parallel.tp)),
        V(real(c.model.vocab_size) / real(c.parallel.tp)),
        w(real(c.model.conv_width)),
        tp(real(c.parallel.tp)),
        cp(real(c.parallel.cp)) {}
  double channels() const { return h * (2 * n + p); }
  double rows() const { return b * t / tp; }  // tokens between layers
};

/// Segments, tokens before P and segments with SSM tokens, of the rank where each is largest.
struct Dealt {
  double segments = 0, all_segments = 0, before = 0, scanned = 0;
};

Dealt dealt(const ContextLayout& layout, std::int64_t transpoint) {
  Dealt most;
  for (const auto& mine : layout.segments) {
    Dealt here;
    for (const Segment& s : mine) {
      here.before += real(std::clamp(transpoint, s.begin, s.end) - s.begin);
      here.scanned += s.end > transpoint;
    }
    most.segments = std::max(most.segments, real(static_cast<std::int64_t>(mine.size())));
    most.before = std::max(most.before, here.before);
    most.scanned = std::max(most.scanned, here.scanned);
    most.all_segments += real(static_cast<std::int64_t>(mine.size()));
  }
  return most;
}

/// Elements that a mixer keeps of one micro-batch.
double mixer_saved(const Sizes& z, const Dealt& x) {
  const double tokens = z.b * z.t, state = z.b * z.h * z.n * z.p;
  double kept = 2 * z.rows() * z.d;                       // residual, u
  kept += tokens * (2 * z.channels() + z.h * (z.p + 2));  // projected, qkv, dt
  kept += tokens * 2 * z.h * z.p;                         // y, normed
  kept += z.b * x.before * z.h * (2 * z.n + 1);           // q_rot, k_rot, lse
  kept += x.scanned * state;                              // states at the first SSM tokens
  if (z.cp > 1) {
    kept += z.b * x.segments * (z.w - 1) * z.channels();              // halos
    if (x.scanned > 0) kept += x.all_segments * (state + z.b * z.h);  // entering states of all segments
  }
  return kept;
}

/// What a layer's backward pass holds last: the gradient of its input, and on several tp ranks the input and
/// that gradient's partial sums, of all rows.
double input_working(const Sizes& z) { return z.tp > 1 ? 2 * z.b * z.t * z.d : z.rows() * z.d; }

/// Elements that a mixer's backward pass needs meanwhile: gradients of its intermediates, and in turn those
/// of attention (on several context ranks with the keys and values that queries see, and their gradients) and
/// of its input.
double mixer_working(const Sizes& z, const Dealt& x, double transpoint) {
  double attending = 2 * z.b * x.before * z.h * z.n;
  if (z.cp > 1 && x.before > 0) attending += 2 * z.b * std::min(transpoint, z.T) * z.h * (z.n + z.p);
  return z.b * z.t * (z.h * z.p + 2 * z.channels() + z.h * (z.p + 2)) + std::max(attending, input_working(z));
}

double mlp_saved(const Sizes& z) { return 2 * z.rows() * z.d + 3 * z.b * z.t * z.f; }  // + gate_up, hidden
double mlp_working(const Sizes& z) { return z.b * z.t * z.f + input_working(z); }

}  // namespace

double stage_parameters(const Config& config, const Stage& stage) {
  const ModelConfig& m = config.model;
  const double d = real(m.hidden_size), tp = real(config.parallel.tp);
  ModelConfig one = m;  // one layer of each kind, so that there is one formula: parameter_counts
  one.num_layers = 1;
  one.layer_pattern = std::string("T");
  const double mixer = real(parameter_counts(one).mixers);
  one.layer_pattern = std::string("-");
  const double mlp = real(parameter_counts(one).mlps);
  double count = 0;
  for (std::int64_t i = stage.begin; i < stage.end; ++i) count += (m.kind(i) == 'T' ? mixer : mlp) / tp + d;
  const double vocabulary = real(m.vocab_size) * d / tp;
  if (stage.is_first) count += vocabulary;
  if (stage.is_last) count += d + (m.tie_embeddings && stage.is_first ? 0 : vocabulary);
  return count;
}

std::vector<Memory> predict_memory(const Config& config, const std::vector<std::int64_t>& transpoints,
                                   const ContextLayout& layout, const std::vector<Stage>& stages,
                                   const Schedule& schedule) {
  const Sizes z(config);
  const double bytes = element_bytes(config), pp = real(schedule.pp());

  // Of each virtual stage: kept by one micro-batch, and the most that its backward pass holds, what is kept
  // included. A layer's part of it is freed as soon as its gradients are there.
  std::vector<double> kept(stages.size(), 0.0), most(stages.size(), 0.0);
  std::size_t mixer = 0;
  for (std::size_t s = 0; s < stages.size(); ++s) {
    const double gradient = z.rows() * z.d;                         // of the residual
    double so_far = stages[s].is_first ? z.b * z.t : 0;             // tokens
    if (stages[s].is_last) so_far += 2 * gradient + 2 * z.b * z.t;  // residual, normed, targets, lse
    for (std::int64_t i = stages[s].begin; i < stages[s].end; ++i) {
      const bool is_mixer = config.model.kind(i) == 'T';
      const std::int64_t transpoint = is_mixer ? transpoints[mixer++] : 0;
      const Dealt x = dealt(layout, transpoint);
      so_far += is_mixer ? mixer_saved(z, x) : mlp_saved(z);
      const double working = is_mixer ? mixer_working(z, x, real(transpoint)) : mlp_working(z);
      most[s] = std::max(most[s], so_far + working + gradient);
    }
    const double logits = stages[s].is_last ? z.b * z.t * z.V : 0;  // freed before the layers' turn
    kept[s] = so_far + logits;
    most[s] = std::max(most[s], kept[s] + (stages[s].is_last ? gradient + input_working(z) : 0));
  }

  std::vector<Memory> ranks(schedule.ranks.size());
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    Memory& memory = ranks[rank];
    double parameters = 0;
    for (std::size_t s = rank; s < stages.size(); s += ranks.size())
      parameters += stage_parameters(config, stages[s]);
    memory.parameters = memory.gradients = parameters * bytes;
    memory.optimizer = 2 * parameters * bytes / (real(std::max<std::int64_t>(1, config.parallel.dp)) * z.cp);
    double in_flight = 0, peak = 0;
    for (const Action& a : schedule.ranks[rank]) {
      const std::size_t s = static_cast<std::size_t>(a.chunk) * ranks.size() + rank;
      const bool is_forward = a.kind == Action::Kind::forward;
      if (!is_forward) peak = std::max(peak, in_flight + (most[s] - kept[s]) * bytes);
      in_flight += (is_forward ? kept[s] : -kept[s]) * bytes;
      memory.activations = std::max(memory.activations, in_flight);
    }
    memory.working = std::max(0.0, peak - memory.activations);
    // What stages get for their next action, and what they have sent of the last ones.
    if (pp > 1) memory.working += (1 + 2 * real(schedule.chunks)) * z.rows() * z.d * bytes;
  }
  return ranks;
}

}  // namespace transmamba
