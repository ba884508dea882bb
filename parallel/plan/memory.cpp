// What a rank's memory holds in a step. The terms are the tensors of Mixer::Saved, Mlp::Saved and
// Model::Saved and, by the same names with a d before them, their gradients; letters as in kernels/types.h,
// with h, f, V and the tokens between layers divided by tp, t by cp. All in bytes. Workspaces are those of
// kernels/workspace.h, on a GPU in bfloat16: CPU kernels have none.
#include <algorithm>
#include <cmath>

#include "core/cost_model.h"
#include "core/recompute.h"
#include "kernels/workspace.h"
#include "parallel/comm/communicator.h"
#include "parallel/plan/plan.h"

namespace transmamba {
namespace {

double real(std::int64_t x) { return static_cast<double>(x); }
std::int64_t whole(double x) { return static_cast<std::int64_t>(x); }

struct Sizes {
  double T, S;  // of an element of either type
  double b, t, d, h, n, p, f, V, w, tp, cp;
  Recompute recompute;
  bool has_workspaces, deterministic;
  /// `tokens`: of a sequence, on this context rank.
  Sizes(const Config& c, std::int64_t tokens)
      : T(element_bytes(c)),
        S(statistics_bytes(c)),
        b(real(c.train.micro_batch)),
        t(real(tokens)),
        d(real(c.model.hidden_size)),
        h(real(c.model.num_heads) / real(c.parallel.tp)),
        n(real(c.model.qk_head_dim)),
        p(real(c.model.v_head_dim)),
        f(real(c.model.ffn_hidden_size) / real(c.parallel.tp)),
        V(real(c.model.vocab_size) / real(c.parallel.tp)),
        w(real(c.model.conv_width)),
        tp(real(c.parallel.tp)),
        cp(real(c.parallel.cp)),
        recompute(recompute_of(c.train.recompute)),
        has_workspaces(c.train.device == "cuda" && c.train.dtype == "bfloat16"),
        deterministic(c.train.deterministic) {}
  double channels() const { return h * (2 * n + p); }
  double aligned(double width) const { return std::ceil(width * T / 16) * 16; }  // a row of aligned_rows()
  double rows() const { return b * t / tp * d * T; }              // (rows, d): what is between layers
  double all_rows() const { return tp > 1 ? b * t * d * T : 0; }  // of all tp ranks, gathered
  // Gradient of a layer's input and, on several tp ranks, the input of all, and that gradient's addends that
  // others get and that come from them.
  double input_projection() const { return rows() + (tp > 1 ? all_rows() + 2 * (tp - 1) * rows() : 0); }

  double gemm_workspace() const { return has_workspaces ? real(workspace::kGemm) : 0; }
  /// Of `queries` that see as many keys of their own, and `earlier` ones, for which there are other dq, dk
  /// and dv of the heads that are taken at a time.
  double attention_workspace(double queries, double earlier) const {
    if (!has_workspaces) return 0;
    const double most = real(workspace::attention_backward(
        whole(b), whole(h), whole(queries), whole(std::max(queries, earlier)), whole(n), deterministic));
    if (earlier == 0) return most;
    const workspace::AttentionPiece piece = workspace::attention_backward_piece(
        whole(b), whole(h), whole(queries), whole(earlier), deterministic);
    return most + real(piece.sequences * piece.heads) * (queries * n + earlier * (n + p)) * T;
  }
  /// The scan's gradients, or those of the summary of the tokens before P.
  double ssd_workspace(double before, double after) const {
    if (!has_workspaces) return 0;
    const auto cut = [&](double tokens) {
      return workspace::SsdCut(whole(b), whole(tokens), whole(h), workspace::kProcessors);
    };
    return S * real(std::max(workspace::ssd_scan_backward(cut(after), whole(n), whole(p)),
                             workspace::ssd_summary_backward(cut(before))));
  }
};

/// Of the rank where each is largest, for one mixer.
struct Dealt {
  double segments = 0;
  double before = 0;   // tokens before P
  double after = 0;    // from P on
  double state = 0;    // states at P that are not those that enter a segment
  double earlier = 0;  // keys before its last queries' segment, which it gathers
  double given = 0;    // tokens that it sends for that, one to two ranks counted twice
  bool is_scanned = false;
};

Dealt dealt(const ContextLayout& layout, std::int64_t transpoint, std::int64_t length) {
  Dealt most;
  most.is_scanned = transpoint < length;
  std::vector<std::int64_t> earlier;
  for (const auto& mine : layout.segments) {
    earlier.push_back(0);
    for (const Segment& s : mine)
      if (s.begin < transpoint) earlier.back() = s.begin;
  }
  for (std::size_t rank = 0; rank < earlier.size(); ++rank) {
    Dealt here;
    for (const Segment& s : layout.segments[rank]) {
      here.before += real(std::clamp(transpoint, s.begin, s.end) - s.begin);
      here.after += real(s.end - std::clamp(transpoint, s.begin, s.end));
      here.state += s.end > transpoint && (s.begin < transpoint || layout.segments.size() == 1);
      for (std::size_t other = 0; other < earlier.size(); ++other)
        if (other != rank) here.given += real(std::clamp(earlier[other], s.begin, s.end) - s.begin);
    }
    most.segments = std::max(most.segments, real(static_cast<std::int64_t>(layout.segments[rank].size())));
    most.before = std::max(most.before, here.before);
    most.after = std::max(most.after, here.after);
    most.state = std::max(most.state, here.state);
    if (2 * real(earlier[rank]) + here.given > 2 * most.earlier + most.given)
      most.earlier = real(earlier[rank]), most.given = here.given;
  }
  return most;
}

struct LayerBytes {
  double kept = 0;      // from the forward to the backward pass
  double backward = 0;  // at most in the latter, what was kept included
  double at_work = 0;   // at most in the latter, workspaces included too

  void add_moment(double tensors, double workspace) {
    backward = std::max(backward, tensors);
    at_work = std::max(at_work, tensors + workspace);
  }
};

LayerBytes mixer_bytes(const Sizes& z, const Dealt& x, bool converter) {
  const double tokens = z.b * z.t, one_state = z.b * z.h * z.n * z.p * z.S, decay = z.b * z.h * z.S;
  const double residual = z.rows(), u = z.rows();
  const double projected = tokens * z.aligned(z.channels() + z.h * (z.p + 1));
  const double halo = z.cp > 1 ? z.b * x.segments * (z.w - 1) * z.channels() * z.T : 0;
  const double dt = tokens * z.h * z.S, qkv = tokens * z.channels() * z.T;
  const double k_rotated = x.is_scanned && converter ? z.b * x.before * z.h * z.n * z.T : 0;
  const double lse = z.b * x.before * z.h * z.S;
  const bool hands_over = z.cp > 1 && x.is_scanned;
  const double entering = hands_over ? x.segments * (one_state + decay) : 0;
  const double state = x.state * (one_state + (hands_over && converter ? decay : 0));
  const double y = tokens * z.h * z.p * z.T, normed = y;

  const double always = residual + projected + halo + dt + lse + entering + state + y;
  const double again = u + normed + qkv + k_rotated;
  LayerBytes bytes;
  bytes.kept = z.recompute == Recompute::full        ? residual
               : z.recompute == Recompute::selective ? always
                                                     : always + again;

  const double dy = y, dprojected = projected, dqkv = qkv, dk_rotated = k_rotated, ddt = dt;
  const double through_output =
      always + again - (z.recompute == Recompute::selective ? qkv + k_rotated : 0) + dy + z.all_rows();
  // Gradients of states: this rank's and all ranks' as they were gathered.
  const double handing = hands_over ? x.segments * (1 + z.cp) * (one_state + decay) : 0;
  // Earlier keys and values and buffers of what comes and goes, or their gradients beside either; these are
  // on their way while we scan.
  const double key = z.b * z.h * (z.n + z.p) * z.T;
  const double attending = (2 * x.earlier + x.given) * key + handing;
  // Those that this rank's segments end with; or one that is passed from the scan to the converter.
  const double scanning = (x.earlier + x.given) * key +
                          (hands_over ? handing + x.segments * one_state : one_state * x.is_scanned);
  const double mixing = always + again - normed + dy + dprojected + dqkv + dk_rotated + ddt;
  bytes.add_moment(through_output, z.gemm_workspace());
  bytes.add_moment(mixing + attending, z.attention_workspace(x.before, x.earlier));
  bytes.add_moment(mixing + scanning, x.is_scanned ? z.ssd_workspace(x.before, x.after) : 0);
  bytes.add_moment(residual + u + dprojected + z.input_projection(), z.gemm_workspace());
  return bytes;
}

LayerBytes mlp_bytes(const Sizes& z) {
  const double residual = z.rows(), u = z.rows(), hidden = z.b * z.t * z.f * z.T, gate_up = 2 * hidden;
  const double dhidden = hidden;  // that of gate_up takes its place
  LayerBytes bytes;
  bytes.kept = z.recompute == Recompute::full        ? residual
               : z.recompute == Recompute::selective ? residual + gate_up
                                                     : residual + gate_up + u + hidden;
  bytes.add_moment(residual + u + gate_up + std::max(hidden + dhidden + z.all_rows(), z.input_projection()),
                   z.gemm_workspace());
  return bytes;
}

/// The same for one virtual stage.
LayerBytes stage_bytes(const Sizes& z, const Config& config, const Stage& stage,
                       const std::vector<std::int64_t>& transpoints, const ContextLayout& layout) {
  const ModelConfig& m = config.model;
  const double dresidual = z.rows(), ids = z.b * z.t * 4;
  const double normed = z.rows();
  const double logits = z.b * z.t * z.aligned(z.V);  // their gradient takes their place
  const bool has_late_head = late_head_rank(m, layout, transpoints, config.parallel.tp, config.parallel.pp,
                                            config.train.device == "cuda")
                                 .has_value();
  const double head = has_late_head ? logits + normed : 0;
  LayerBytes bytes;
  bytes.kept = 2 * ids;  // tokens, targets
  std::int64_t mixer = 0;
  for (std::int64_t i = 0; i < stage.end; ++i) {
    const bool is_mixer = m.kind(i) == 'T';
    const std::int64_t transpoint = is_mixer ? transpoints[static_cast<std::size_t>(mixer++)] : 0;
    if (i < stage.begin) continue;
    const LayerBytes layer =
        is_mixer ? mixer_bytes(z, dealt(layout, transpoint, config.train.seq_len), m.memory_converter)
                 : mlp_bytes(z);
    bytes.add_moment(bytes.kept + layer.backward + dresidual + head, layer.at_work - layer.backward);
    bytes.kept += layer.kept;
  }
  if (!stage.is_last) return bytes;
  const double residual = z.rows(), lse = z.b * z.t * z.S;
  bytes.kept += residual + lse + logits + (z.recompute == Recompute::none ? normed : 0);
  bytes.add_moment(bytes.kept + z.input_projection() + (z.recompute == Recompute::none ? 0 : normed),
                   z.gemm_workspace());
  return bytes;
}

/// Of stage_parameters(), those that are no matrices: convolutions, norms, biases, A_log, D.
double small_parameters(const Config& config, const Stage& stage) {
  const Sizes z(config, 0);
  double count = stage.is_last ? z.d : 0;
  for (std::int64_t i = stage.begin; i < stage.end; ++i)
    count += z.d + (config.model.kind(i) == 'T' ? (z.w + 1) * z.channels() + z.h * (z.p + 3) : 0);
  return count;
}

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
  const Sizes z(config, layout.most_tokens());
  std::vector<LayerBytes> bytes;
  for (const Stage& stage : stages) bytes.push_back(stage_bytes(z, config, stage, transpoints, layout));

  std::vector<Memory> ranks(schedule.ranks.size());
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    Memory& memory = ranks[rank];
    double parameters = 0, matrices = 0;
    for (std::size_t s = rank; s < stages.size(); s += ranks.size()) {
      parameters += stage_parameters(config, stages[s]);
      matrices += stage_parameters(config, stages[s]) - small_parameters(config, stages[s]);
    }
    const double masters = z.T < z.S ? matrices : 0;  // of values that are rounded
    memory.parameters = matrices * z.T + (parameters - matrices) * z.S;
    memory.gradients = parameters * z.S;
    const double data_ranks = real(std::max<std::int64_t>(1, config.parallel.dp)) * z.cp;
    memory.optimizer = (2 * parameters + masters) * z.S / data_ranks;
    double in_flight = 0, peak = 0, at_work = 0;
    for (const Action& a : schedule.ranks[rank]) {
      const LayerBytes& stage = bytes[static_cast<std::size_t>(a.chunk) * ranks.size() + rank];
      const bool is_forward = a.kind == Action::Kind::forward;
      if (!is_forward) {
        peak = std::max(peak, in_flight - stage.kept + stage.backward);
        at_work = std::max(at_work, in_flight - stage.kept + stage.at_work);
      }
      in_flight += is_forward ? stage.kept : -stage.kept;
      memory.activations = std::max(memory.activations, in_flight);
    }
    memory.working = std::max(0.0, peak - memory.activations);
    memory.workspaces = std::max(0.0, at_work - std::max(peak, memory.activations));
    // What stages get for their next action, what they have sent of the last ones, and where it arrives each
    // way; and where what others send of gradients does.
    const bool by_copies = config.train.device == "cuda" && config.parallel.copy_engines;
    const double arriving = by_copies ? 2 : 0;
    if (ranks.size() > 1) memory.working += (1 + 2 * real(schedule.chunks) + arriving) * z.rows();
    if (by_copies && data_ranks > 1 && z.S == 4) memory.working += real(Communicator::kSumBytes);
  }
  return ranks;
}

}  // namespace transmamba
