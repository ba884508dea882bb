#include "parallel/layers/mixer.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "core/profile.h"
#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/qkv_conv.h"
#include "kernels/rms_norm.h"
#include "kernels/ssd.h"
#include "kernels/step_size.h"
#include "parallel/context/conv_halo.h"
#include "parallel/layers/aligned_rows.h"

namespace transmamba {

Mixer::Mixer(const ModelConfig& c, const std::string& prefix, std::int64_t transpoint, Communicator& tp,
             ParameterStore& store)
    : heads_(c.num_heads / tp.size()),
      n_(c.qk_head_dim),
      p_(c.v_head_dim),
      conv_width_(c.conv_width),
      transpoint_(transpoint),
      gate_(c.gate),
      converter_(c.memory_converter),
      rope_theta_(c.rope_theta),
      norm_eps_(c.norm_eps) {
  const std::int64_t d = c.hidden_size, h = c.num_heads, w = conv_width_;
  const Init normal = Init::normal(c.init_std), conv = Init::uniform(-1 / std::sqrt(w), 1 / std::sqrt(w));
  // Everything of the mixer is cut by head; the output projection along its columns.
  const auto by_head = [&](const char* name, const Shape& shape, const Init& init, bool decays = false) {
    return ParameterSpec{prefix + name, {shape, 0, tp.size(), tp.rank()}, init, decays};
  };
  const auto matrix = [&](const char* name, std::int64_t rows) {
    return by_head(name, {rows, d}, normal, true);
  };
  in_ = ColumnLinear(store.add({matrix("q_proj.weight", h * n_), matrix("k_proj.weight", h * n_),
                                matrix("v_proj.weight", h * p_), matrix("z_proj.weight", h * p_),
                                matrix("dt_proj.weight", h)}),
                     tp);
  conv_weight_ =
      store.add({by_head("conv_q.weight", {h * n_, w}, conv), by_head("conv_k.weight", {h * n_, w}, conv),
                 by_head("conv_v.weight", {h * p_, w}, conv)});
  conv_bias_ = store.add({by_head("conv_q.bias", {h * n_}, conv), by_head("conv_k.bias", {h * n_}, conv),
                          by_head("conv_v.bias", {h * p_}, conv)});
  dt_bias_ = store.add({by_head("dt_bias", {h}, Init::step_bias(1e-3, 1e-1))});
  a_log_ = store.add({by_head("A_log", {h}, Init::log_uniform(1, 16))});
  d_skip_ = store.add({by_head("D", {h}, Init::constant(1))});
  norm_weight_ = store.add({by_head("out_norm.weight", {h * p_}, Init::constant(1))});
  const ShardSpec columns{{d, h * p_}, 1, tp.size(), tp.rank()};
  out_ = RowLinear(
      store.add({{prefix + "out_proj.weight", columns, Init::normal(c.output_init_std()), true}}), tp);
}

std::vector<Mixer::Run> Mixer::runs(const Sequence& sequence) const {
  std::vector<Run> out;
  for (std::size_t i = 0; i < sequence.mine().size(); ++i) {
    const Sequence::Part& part = sequence.my_part(i);
    const std::int64_t size = part.segment.size(),
                       cut = std::clamp<std::int64_t>(transpoint_ - part.segment.begin, 0, size);
    // Without the converter the state is zero at P, whatever came before.
    out.push_back({part.offset, part.offset + cut, part.offset + size, part.segment.begin,
                   part.offset + (converter_ ? 0 : cut), part.segment.end == sequence.length()});
  }
  return out;
}

Mixer::Projections Mixer::project(const Context& context, const Tensor& u, std::int64_t b,
                                  std::int64_t t) const {
  const Region region(context, "project");
  Projections s;
  s.projected = aligned_rows(context, {b, t, projected_width()});
  s.dt = context.empty({b, t, heads_}, context.statistics());
  in_.forward(context, u, s.projected.merge(0));
  step_size({.raw = step_view(s.projected), .bias = dt_bias_.value(), .dt = s.dt}, context.stream);
  return s;
}

void Mixer::convolve(const Context& context, const Projections& in, const Run& run, ConstView halo) const {
  qkv_conv({.x = conv_view(in.projected).slice(1, run.begin, run.end),
            .halo = halo,
            .weight = conv_weight_.value(),
            .bias = conv_bias_.value(),
            .y = in.qkv.slice(1, run.begin, run.end),
            .k_rotated = before_transpoint(in.k_rotated, run),
            .heads = heads_,
            .qk_width = n_,
            .rotated = run.cut - run.begin,
            .position = run.position,
            .theta = rope_theta_},
           context.stream);
}

void Mixer::convolve(const Context& context, const Sequence& sequence, bool keep_states, Projections& in,
                     TokenExchange::Transfer transfer) const {
  const Region region(context, "convolve");
  const std::int64_t b = in.projected.dim(0), cut = sequence.tokens_before(transpoint_),
                     width = conv_width_ - 1;
  const std::vector<Run> all = runs(sequence);
  in.qkv = context.empty({b, sequence.tokens(), channels()});
  if (cut > 0 && state_reads_prefix(sequence, keep_states))
    in.k_rotated = context.empty({b, cut, heads_, n_});
  const bool gathers = sequence.parts().size() > 1 && width > 0 && !in.halo;
  const auto first_tokens = [&](Run run) {
    run.end = std::min(run.end, run.begin + width), run.cut = std::min(run.cut, run.end);
    return run;
  };
  std::optional<TokenExchange> exchange;
  if (gathers) {
    exchange = halo_exchange(sequence, width);
    in.halo = context.empty({b, std::ssize(all) * width, channels()});
    fill({.value = 0, .y = in.halo}, context.stream);
    transfer =
        exchange->start_gather(context, "conv halo", conv_view(in.projected), in.halo, std::move(transfer));
  }
  // The tokens that need what is on its way come last.
  for (std::size_t i = 0; i < all.size(); ++i) {
    Run run = all[i];
    ConstView halo = segment_halo(in.halo, i, width);
    if (gathers && !run.is_first()) {
      halo = conv_view(in.projected).slice(1, run.begin, first_tokens(run).end);
      run.begin = first_tokens(run).end, run.cut = std::max(run.cut, run.begin), run.position += width;
    }
    if (run.begin < run.end) convolve(context, in, run, halo);
  }
  if (!gathers) return;
  transfer.finish(context, &sequence);
  for (std::size_t i = 0; i < all.size(); ++i)
    if (!all[i].is_first()) convolve(context, in, first_tokens(all[i]), segment_halo(in.halo, i, width));
}

void Mixer::scan(const Context& context, const Projections& in, std::int64_t begin, std::int64_t end,
                 ConstView state, const Tensor& y, View last) const {
  ssd_scan({.q = head_view(in.qkv, 0).slice(1, begin, end),
            .k = head_view(in.qkv, 1).slice(1, begin, end),
            .v = head_view(in.qkv, 2).slice(1, begin, end),
            .dt = in.dt.slice(1, begin, end),
            .a_log = a_log_.value(),
            .d_skip = d_skip_.value(),
            .state_in = state,
            .y = y.slice(1, begin, end),
            .state_out = last},
           context.stream);
}

void Mixer::summarise(const Context& context, const Projections& in, std::int64_t begin, std::int64_t end,
                      ConstView state_in, View state_out, View log_decay) const {
  ssd_summary({.k = head_view(in.qkv, 1).slice(1, begin, end),
               .v = head_view(in.qkv, 2).slice(1, begin, end),
               .dt = in.dt.slice(1, begin, end),
               .a_log = a_log_.value(),
               .state_in = state_in,
               .state_out = state_out,
               .log_decay = log_decay},
              context.stream);
}

Summaries Mixer::summaries(const Context& context, const Sequence& sequence, const Projections& in) const {
  const Region region(context, "summarise");
  const Summaries mine(context, sequence.max_parts(), in.dt.dim(0), heads_, n_, p_);
  const std::vector<Run> all = runs(sequence);
  for (std::size_t i = 0; i < all.size(); ++i)
    if (!all[i].is_last)
      summarise(context, in, all[i].summarised, all[i].end, {}, mine.state_of(i), mine.log_decay_of(i));
  return mine;
}

Summaries Mixer::scan_first(const Context& context, const Sequence& sequence, Saved& s) const {
  const Region region(context, "convert and scan");
  Summaries mine(context, sequence.max_parts(), s.in.dt.dim(0), heads_, n_, p_);
  fill({.value = 0, .y = mine.log_decay}, context.stream);  // of no state
  scan(context, sequence, s, mine.state_of(0));
  return mine;
}

void Mixer::scan(const Context& context, const Sequence& sequence, Saved& s, View first_end) const {
  const std::vector<Run> all = runs(sequence);
  s.state.resize(all.size());
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Run& run = all[i];
    if (!run.scans(s.keep_states)) continue;
    // The state at the segment's first SSM token: what enters it, through its tokens before P.
    const Tensor entering = s.entering ? s.entering.of(i) : Tensor();
    const bool starts_here = run.cut == run.begin;
    s.state[i] = starts_here && entering ? entering
                                         : context.empty({s.y.dim(0), heads_, n_, p_}, context.statistics());
    if (!starts_here && converter_) {
      if (entering) s.prefix_log_decay = context.empty({s.y.dim(0), heads_}, context.statistics());
      summarise(context, s.in, run.begin, run.cut, entering, s.state[i], s.prefix_log_decay);
    } else if (!starts_here || !entering) {
      fill({.value = 0, .y = s.state[i]}, context.stream);
    }
    const bool has_transpoint = run.cut > run.begin || run.position == transpoint_;
    if (s.keep_states && has_transpoint) s.state_at_transpoint = s.state[i];
    if (s.keep_states && run.is_last) s.last_state = context.empty(s.state[i].shape(), context.statistics());
    scan(context, s.in, run.cut, run.end, s.state[i], s.y, run.is_last ? View(s.last_state) : first_end);
  }
}

void Mixer::attend(const Context& context, const Sequence& sequence, const Saved& s) const {
  if (s.lse.numel() == 0) return;
  const Region region(context, "attend");
  for (const Run& run : runs(sequence)) {
    const auto part = [&](const Tensor& x) { return x.slice(1, run.begin, run.cut); };
    if (run.begin < run.cut)
      attention({.q = part(head_view(s.in.qkv, 0)),
                 .k = part(attended_keys(s.in)),
                 .v = part(head_view(s.in.qkv, 2)),
                 .o = part(s.y),
                 .lse = s.lse.slice(2, run.begin, run.cut)},
                context.stream);
  }
}

void Mixer::attend_earlier(const Context& context, const Sequence& sequence, const EarlierKeys& keys,
                           const Saved& s) const {
  if (keys.k().numel() == 0) return;
  const Region region(context, "attend");
  for (const Run& run : runs(sequence))
    if (run.begin < run.cut && !run.is_first())
      attention({.q = head_view(s.in.qkv, 0).slice(1, run.begin, run.cut),
                 .k = keys.k().slice(1, 0, run.position),
                 .v = keys.v().slice(1, 0, run.position),
                 .o = s.y.slice(1, run.begin, run.cut),
                 .lse = s.lse.slice(2, run.begin, run.cut),
                 .offset = run.position - 1,  // all of them
                 .continues = true},
                context.stream);
}

std::int64_t Mixer::first_gated(std::int64_t cut, std::int64_t tokens) const {
  return gate_ == "all" ? 0 : gate_ == "none" ? tokens : cut;
}

Tensor Mixer::gate_and_norm(const Context& context, const Tensor& y, const Projections& in,
                            std::int64_t cut) const {
  const Region region(context, "gate and norm");
  const std::int64_t t = y.dim(1), gated = first_gated(cut, t);
  const View weight = norm_weight_.value().split(0, p_);
  const Tensor normed = context.empty(y.shape());
  if (gated > 0)
    rms_norm({.x = y.slice(1, 0, gated), .weight = weight, .y = normed.slice(1, 0, gated), .eps = norm_eps_},
             context.stream);
  if (gated < t)
    rms_norm({.x = y.slice(1, gated, t),
              .gate = gate_view(in.projected).slice(1, gated, t),
              .weight = weight,
              .y = normed.slice(1, gated, t),
              .eps = norm_eps_},
             context.stream);
  return normed;
}

void Mixer::Saved::drop(Recompute recompute) {
  if (recompute == Recompute::selective) normed = in.qkv = in.k_rotated = Tensor();
  if (recompute == Recompute::full) {
    Saved result;
    result.keep_states = keep_states;
    result.state_at_transpoint = state_at_transpoint, result.last_state = last_state;
    *this = std::move(result);
  }
}

void Mixer::mix(const Context& context, const Sequence& sequence, const Tensor& u, std::int64_t b,
                Saved& s) const {
  const std::int64_t t = sequence.tokens(), cut = sequence.tokens_before(transpoint_);
  const bool hands_over = sequence.parts().size() > 1 && (transpoint_ < sequence.length() || s.keep_states);
  // What comes from other ranks is asked for first, in the order in which it comes.
  TokenExchange::Transfer halo =
      halo_exchange(sequence, conv_width_ - 1).expect_gather(b, channels(), context.dtype);
  std::optional<StateHandoff> handoff;
  if (hands_over)
    handoff.emplace(context, sequence, Shape{b, heads_, n_, p_}, StateHandoff::Direction::later,
                    "state handoff");

  // Project and convolve: q, k, v and step sizes for all tokens, whoever reads them; q and k as they do.
  s.in = project(context, u, b, t);
  convolve(context, sequence, s.keep_states, s.in, std::move(halo));
  s.y = context.empty({b, t, heads_, p_});

  // Other ranks' keys are on their way while segments are summarised and attend to their own keys, the
  // summaries while we attend. Where nothing enters a rank its scan's end is its summary; but on the CPU,
  // where it is never ahead of those who wait for it, they would wait for a scan.
  s.lse = context.empty({b, heads_, cut}, context.statistics());
  EarlierKeys keys(context, sequence, transpoint_, attended_keys(s.in).slice(1, 0, cut),
                   head_view(s.in.qkv, 2).slice(1, 0, cut));
  const bool scans_first =
      hands_over && sequence.is_first() && cut < t && context.stream.device != Device::cpu;
  if (handoff)
    handoff->start(context,
                   scans_first ? scan_first(context, sequence, s) : summaries(context, sequence, s.in));

  // Attend before P.
  attend(context, sequence, s);
  keys.finish(context);
  attend_earlier(context, sequence, keys, s);

  {  // Convert at P, and scan from P on.
    const Region region(context, "convert and scan");
    if (handoff) s.entering = handoff->combine(context);
    if (!scans_first) scan(context, sequence, s);
  }
  s.normed = gate_and_norm(context, s.y, s.in, cut);
}

void Mixer::forward(const Context& context, const Sequence& sequence, const Tensor& u, std::int64_t b,
                    ConstView residual, View output, Saved& s) const {
  mix(context, sequence, u, b, s);
  const Region region(context, "out");
  out_.forward(context, s.normed.merge(2).merge(0), residual, output);
}

}  // namespace transmamba
