// The backward pass of mixer.cpp: its steps in reverse. Each exchange between ranks is the conjugate of the
// forward pass's. Memory is freed when its last reader is done (parallel/plan/memory.cpp counts on that).
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
#include "parallel/layers/mixer.h"

namespace transmamba {

void Mixer::gate_and_norm_backward(const Context& context, const Tensor& dnormed, const Saved& s,
                                   std::int64_t cut, const Projections& d) const {
  const Region region(context, "gate and norm backward");
  const std::int64_t t = s.y.dim(1), gated = first_gated(cut, t);
  const Tensor dz = gate_view(d.projected);
  const View weight = norm_weight_.value().split(0, p_), dweight = norm_weight_.grad().split(0, p_);
  if (gated > 0) {
    rms_norm_backward({.dy = dnormed.slice(1, 0, gated),
                       .x = s.y.slice(1, 0, gated),
                       .weight = weight,
                       .dx = dnormed.slice(1, 0, gated),
                       .dweight = dweight,
                       .eps = norm_eps_},
                      context.stream);
    fill({.value = 0, .y = dz.slice(1, 0, gated)}, context.stream);
  }
  if (gated < t)
    rms_norm_backward({.dy = dnormed.slice(1, gated, t),
                       .x = s.y.slice(1, gated, t),
                       .gate = gate_view(s.in.projected).slice(1, gated, t),
                       .weight = weight,
                       .dx = dnormed.slice(1, gated, t),
                       .dgate = dz.slice(1, gated, t),
                       .dweight = dweight,
                       .eps = norm_eps_},
                      context.stream);
}

void Mixer::attend_backward(const Context& context, const Sequence& sequence, const Tensor& dy,
                            const Saved& s, const Projections& d) const {
  const std::int64_t cut = sequence.tokens_before(transpoint_);
  if (cut == 0) return;
  const Region region(context, "attend backward");
  if (d.k_rotated)  // then the unturned keys' gradients are the state's alone, which adds them
    fill({.value = 0, .y = head_view(d.qkv, 1).slice(1, 0, cut)}, context.stream);
  for (const Run& run : runs(sequence)) {
    const auto part = [&](const Tensor& x) { return x.slice(1, run.begin, run.cut); };
    if (run.begin < run.cut)  // into where the convolution's backward pass turns them back
      attention_backward({.dout = part(dy),
                          .q = part(head_view(s.in.qkv, 0)),
                          .k = part(attended_keys(s.in)),
                          .v = part(head_view(s.in.qkv, 2)),
                          .o = part(s.y),
                          .lse = s.lse.slice(2, run.begin, run.cut),
                          .dq = part(head_view(d.qkv, 0)),
                          .dk = part(attended_keys(d)),
                          .dv = part(head_view(d.qkv, 2))},
                         context.stream);
  }
}

void Mixer::attend_earlier_backward(const Context& context, const Sequence& sequence, EarlierKeys& keys,
                                    const Tensor& dy, const Saved& s, const Projections& d) const {
  const std::int64_t cut = sequence.tokens_before(transpoint_);
  const Tensor dk = context.empty(keys.k().shape()), dv = context.empty(keys.v().shape());
  fill({.value = 0, .y = dk}, context.stream);
  fill({.value = 0, .y = dv}, context.stream);
  if (dk.numel() > 0) {
    const Region region(context, "attend backward");
    for (const Run& run : runs(sequence))
      if (run.begin < run.cut && !run.is_first())
        attention_backward({.dout = dy.slice(1, run.begin, run.cut),
                            .q = head_view(s.in.qkv, 0).slice(1, run.begin, run.cut),
                            .k = keys.k().slice(1, 0, run.position),
                            .v = keys.v().slice(1, 0, run.position),
                            .o = s.y.slice(1, run.begin, run.cut),
                            .lse = s.lse.slice(2, run.begin, run.cut),
                            .dq = head_view(d.qkv, 0).slice(1, run.begin, run.cut),
                            .dk = dk.slice(1, 0, run.position),
                            .dv = dv.slice(1, 0, run.position),
                            .offset = run.position - 1,  // all of them
                            .accumulate = true,
                            .accumulate_dq = true},
                           context.stream);
  }
  keys.start_scatter(context, dk, dv, attended_keys(d).slice(1, 0, cut),
                     head_view(d.qkv, 2).slice(1, 0, cut));
}

Summaries Mixer::entry_gradients(const Context& context, const Sequence& sequence, const Tensor& dy,
                                 const Saved& s) const {
  const Region region(context, "entry gradients");
  const Summaries mine(context, sequence.max_parts(), dy.dim(0), heads_, n_, p_);
  if (s.entering) copy({.x = s.entering.log_decay, .y = mine.log_decay}, context.stream);
  const std::vector<Run> all = runs(sequence);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Run& run = all[i];
    const bool starts_here = run.cut == run.begin;
    if (run.is_first()) continue;  // nobody's
    if (run.cut == run.end || !(starts_here || converter_)) {
      fill({.value = 0, .y = mine.state_of(i)}, context.stream);
      continue;
    }
    ssd_entry_gradient({.dy = dy.slice(1, run.cut, run.end),
                        .q = head_view(s.in.qkv, 0).slice(1, run.cut, run.end),
                        .dt = s.in.dt.slice(1, run.cut, run.end),
                        .a_log = a_log_.value(),
                        .log_decay = starts_here ? Tensor() : s.prefix_log_decay,
                        .dstate_in = mine.state_of(i)},
                       context.stream);
  }
  return mine;
}

Summaries Mixer::scan_last_backward(const Context& context, const Sequence& sequence, const Tensor& dy,
                                    const Saved& s, const Projections& d) const {
  const Region region(context, "convert and scan backward");
  Summaries mine(context, sequence.max_parts(), dy.dim(0), heads_, n_, p_);  // no decay: nothing comes after
  scan_backward(context, sequence, dy, {}, s, d, mine.state_of(0));
  return mine;
}

void Mixer::scan_backward(const Context& context, const Sequence& sequence, const Tensor& dy,
                          const Tensor& dends, const Saved& s, const Projections& d, View last_entry) const {
  const std::vector<Run> all = runs(sequence);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Run& run = all[i];
    const auto at = static_cast<std::int64_t>(i);
    Tensor dstate = dends && !run.is_last ? dends.slice(0, at, at + 1).merge(0) : Tensor();  // at its end
    const bool converts = run.begin < run.cut && converter_;
    if (run.cut < run.end) {
      const auto part = [&](const Tensor& x) { return x.slice(1, run.cut, run.end); };
      const Tensor dend = dstate;
      if (converts) dstate = context.empty(s.state[i].shape(), context.statistics());
      ssd_scan_backward({.dy = part(dy),
                         .dstate_out = dend,
                         .q = part(head_view(s.in.qkv, 0)),
                         .k = part(head_view(s.in.qkv, 1)),
                         .v = part(head_view(s.in.qkv, 2)),
                         .dt = part(s.in.dt),
                         .a_log = a_log_.value(),
                         .d_skip = d_skip_.value(),
                         .state_in = s.state[i],
                         .dq = part(head_view(d.qkv, 0)),
                         .dk = part(head_view(d.qkv, 1)),
                         .dv = part(head_view(d.qkv, 2)),
                         .ddt = part(d.dt),
                         .da_log = a_log_.grad(),
                         .dd_skip = d_skip_.grad(),
                         .dstate_in = converts ? View(dstate) : last_entry},
                        context.stream);
    }
    if (!converts || !dstate) continue;
    // The state passed through the segment's tokens before P; they get their part.
    ssd_summary_backward({.dstate_out = dstate,
                          .k = head_view(s.in.qkv, 1).slice(1, run.begin, run.cut),
                          .v = head_view(s.in.qkv, 2).slice(1, run.begin, run.cut),
                          .dt = s.in.dt.slice(1, run.begin, run.cut),
                          .a_log = a_log_.value(),
                          .state_in = s.entering ? s.entering.of(i) : Tensor(),
                          .dk = head_view(d.qkv, 1).slice(1, run.begin, run.cut),
                          .dv = head_view(d.qkv, 2).slice(1, run.begin, run.cut),
                          .ddt = d.dt.slice(1, run.begin, run.cut),
                          .da_log = a_log_.grad()},
                         context.stream);
  }
}

void Mixer::convolve_backward(const Context& context, const Sequence& sequence, const Projections& in,
                              const Projections& d) const {
  const Region region(context, "convolve backward");
  const std::vector<Run> all = runs(sequence);
  const std::int64_t width = conv_width_ - 1;
  const Tensor x = conv_view(in.projected), dx = conv_view(d.projected);
  const Tensor dhalo = in.halo ? context.empty(in.halo.shape()) : Tensor();
  std::optional<TokenExchange> exchange;
  TokenExchange::Transfer transfer;
  if (dhalo) {
    exchange = halo_exchange(sequence, width);
    transfer = exchange->expect_scatter_add(x.dim(0), x.dim(2), x.dtype());
  }
  for (std::size_t i = 0; i < all.size(); ++i)
    qkv_conv_backward({.dy = d.qkv.slice(1, all[i].begin, all[i].end),
                       .dk_rotated = before_transpoint(d.k_rotated, all[i]),
                       .x = x.slice(1, all[i].begin, all[i].end),
                       .halo = segment_halo(in.halo, i, width),
                       .weight = conv_weight_.value(),
                       .bias = conv_bias_.value(),
                       .dx = dx.slice(1, all[i].begin, all[i].end),
                       .dhalo = segment_halo(dhalo, i, width),
                       .dweight = conv_weight_.grad(),
                       .dbias = conv_bias_.grad(),
                       .heads = heads_,
                       .qk_width = n_,
                       .rotated = all[i].cut - all[i].begin,
                       .position = all[i].position,
                       .theta = rope_theta_},
                      context.stream);
  if (!exchange) return;
  transfer = exchange->start_scatter_add(context, "conv halo gradients", dhalo, dx, std::move(transfer));
  transfer.finish(context, &sequence);
}

Tensor Mixer::backward(const Context& context, const Sequence& sequence, const Tensor& u, const Tensor& dout,
                       Saved& s) const {
  const std::int64_t b = s.y.dim(0), t = s.y.dim(1), cut = sequence.tokens_before(transpoint_);
  std::optional<StateHandoff> handoff;
  if (sequence.parts().size() > 1 && transpoint_ < sequence.length())
    handoff.emplace(context, sequence, Shape{b, heads_, n_, p_}, StateHandoff::Direction::earlier,
                    "state handoff gradients");

  // Through the output projection, the norm and the gate.
  if (!s.normed) s.normed = gate_and_norm(context, s.y, s.in, cut);
  Tensor dy = context.empty(s.y.shape());
  {
    const Region region(context, "out backward");
    out_.backward(context, dout, s.normed.merge(2).merge(0), dy.merge(2).merge(0));
  }
  s.normed = Tensor();
  Projections d;
  d.projected = aligned_rows(context, {b, t, projected_width()});
  gate_and_norm_backward(context, dy, s, cut, d);

  // Through attention, then the SSM: what the states ask of a token's k and v adds to what attention did. The
  // gradients of states pass between ranks while we attend, those of other ranks' keys while we scan.
  if (!s.in.qkv) convolve(context, sequence, s.keep_states, s.in, {});
  d.qkv = context.empty(s.in.qkv.shape());
  if (s.in.k_rotated) d.k_rotated = context.empty(s.in.k_rotated.shape());
  d.dt = context.empty(s.in.dt.shape(), context.statistics());
  EarlierKeys keys(context, sequence, transpoint_, attended_keys(s.in).slice(1, 0, cut),
                   head_view(s.in.qkv, 2).slice(1, 0, cut));
  const bool scans_last =
      handoff && sequence.is_last() && cut == 0 && context.stream.device != Device::cpu;  // as mix() does
  if (handoff)
    handoff->start(context, scans_last ? scan_last_backward(context, sequence, dy, s, d)
                                       : entry_gradients(context, sequence, dy, s));
  attend_backward(context, sequence, dy, s, d);
  keys.finish(context);
  attend_earlier_backward(context, sequence, keys, dy, s, d);
  {
    const Region region(context, "convert and scan backward");
    fill({.value = 0, .y = d.dt.slice(1, 0, cut)}, context.stream);
    const Tensor dends = handoff ? handoff->combine_backward(context) : Tensor();
    if (!scans_last) scan_backward(context, sequence, dy, dends, s, d);
  }
  keys.finish(context);
  handoff.reset();
  dy = s.y = s.lse = s.in.qkv = s.in.k_rotated = s.prefix_log_decay = Tensor();
  s.state.clear(), s.entering = {};

  // Through the convolution, the softplus and the input projections.
  convolve_backward(context, sequence, s.in, d);
  d.qkv = d.k_rotated = Tensor();
  const Region region(context, "project backward");
  step_size_backward({.ddt = d.dt, .dt = s.in.dt, .draw = step_view(d.projected), .dbias = dt_bias_.grad()},
                     context.stream);
  s.in = {}, d.dt = Tensor();
  return in_.backward(context, d.projected.merge(0), u);
}

}  // namespace transmamba
