// The backward pass of mixer.cpp: its steps in reverse. Each exchange between ranks is the conjugate of the
// forward pass's. Memory is freed when its last reader is done (parallel/plan/memory.cpp counts on that).
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
  if (transpoint_ == 0) return;
  const Region region(context, "attend backward");
  const std::int64_t cut = sequence.tokens_before(transpoint_);
  // Into where the convolution's backward pass turns them back.
  const Tensor dq = head_view(d.qkv, 0), dk = attended_keys(d, cut),
               dv = head_view(d.qkv, 2).slice(1, 0, cut);
  if (d.k_rotated)  // then the unturned keys' gradients are the state's alone, which adds them
    fill({.value = 0, .y = head_view(d.qkv, 1).slice(1, 0, cut)}, context.stream);
  PrefixKeys keys(context, sequence, transpoint_, attended_keys(s.in, cut),
                  head_view(s.in.qkv, 2).slice(1, 0, cut));
  keys.finish(context);
  const PrefixKeys::Gradients sums = keys.gradients(context, dk, dv);
  for (const Run& run : runs(sequence)) {
    const std::int64_t seen = run.position + run.cut - run.begin;
    if (run.begin < run.cut)
      attention_backward({.dout = dy.slice(1, run.begin, run.cut),
                          .q = head_view(s.in.qkv, 0).slice(1, run.begin, run.cut),
                          .k = keys.k().slice(1, 0, seen),
                          .v = keys.v().slice(1, 0, seen),
                          .o = s.y.slice(1, run.begin, run.cut),
                          .lse = s.lse.slice(2, run.begin, run.cut),
                          .dq = dq.slice(1, run.begin, run.cut),
                          .dk = sums.k.slice(1, 0, seen),
                          .dv = sums.v.slice(1, 0, seen),
                          .offset = run.position,
                          .accumulate = sums.adds},
                         context.stream);
  }
  keys.scatter(context, sums, dk, dv);
}

void Mixer::summarise_backward(const Context& context, const Saved& s, std::int64_t begin, std::int64_t end,
                               ConstView dstate_out, ConstView state_in, const Projections& d,
                               View dstate_in) const {
  ssd_summary_backward({.dstate_out = dstate_out,
                        .k = head_view(s.in.qkv, 1).slice(1, begin, end),
                        .v = head_view(s.in.qkv, 2).slice(1, begin, end),
                        .dt = s.in.dt.slice(1, begin, end),
                        .a_log = a_log_.value(),
                        .state_in = state_in,
                        .dk = head_view(d.qkv, 1).slice(1, begin, end),
                        .dv = head_view(d.qkv, 2).slice(1, begin, end),
                        .ddt = d.dt.slice(1, begin, end),
                        .da_log = a_log_.grad(),
                        .dstate_in = dstate_in},
                       context.stream);
}

void Mixer::scan_backward(const Context& context, const Sequence& sequence, const Tensor& dy, const Saved& s,
                          const Projections& d) const {
  const Region region(context, "convert and scan backward");
  const std::vector<Run> all = runs(sequence);
  Summaries direct;  // gradients of the entering states by the segments' own tokens
  if (s.entering) direct = Summaries(context, sequence.max_parts(), dy.dim(0), heads_, n_, p_);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Run& run = all[i];
    if (run.cut == run.end) continue;
    const bool starts_here = run.cut == run.begin;
    const Tensor passed =
        starts_here && s.entering ? Tensor() : context.empty(s.state[i].shape(), context.statistics());
    const View dstate = passed ? passed.view() : direct.state_of(i);
    const auto part = [&](const Tensor& x) { return x.slice(1, run.cut, run.end); };
    ssd_scan_backward({.dy = part(dy),
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
                       .dstate_in = dstate},
                      context.stream);
    // The state passed through the segment's tokens before P; they get their part.
    if (!starts_here && converter_)
      summarise_backward(context, s, run.begin, run.cut, dstate, s.entering ? s.entering.of(i) : Tensor(), d,
                         s.entering ? direct.state_of(i) : View());
  }
  if (!s.entering || transpoint_ >= sequence.length()) return;
  StateHandoff handoff(context, sequence, direct, "state handoff gradients");
  const Tensor dends = handoff.combine_backward(context, s.entering);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Run& run = all[i];
    const auto at = static_cast<std::int64_t>(i);
    if (!run.is_last && run.summarised < run.end)
      summarise_backward(context, s, run.summarised, run.end, dends.slice(0, at, at + 1).merge(0),
                         converter_ ? s.entering.of(i) : s.state[i], d, {});
  }
}

void Mixer::convolve_backward(const Context& context, const Sequence& sequence, const Projections& in,
                              const Projections& d) const {
  const Region region(context, "convolve backward");
  const std::vector<Run> all = runs(sequence);
  const std::int64_t width = conv_width_ - 1;
  const Tensor x = conv_view(in.projected), dx = conv_view(d.projected);
  const Tensor dhalo = in.halo ? context.empty(in.halo.shape()) : Tensor();
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
  if (dhalo)
    halo_exchange(sequence, width)
        .start_scatter_add(context, "conv halo gradients", dhalo, dx)
        .finish(context);
}

Tensor Mixer::backward(const Context& context, const Sequence& sequence, const Tensor& u, const Tensor& dout,
                       Saved& s) const {
  const std::int64_t b = s.y.dim(0), t = s.y.dim(1), cut = sequence.tokens_before(transpoint_);

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

  // Through attention, then the SSM: what the states ask of a token's k and v adds to what attention did.
  if (!s.in.qkv) convolve(context, sequence, s.keep_states, s.in);
  d.qkv = context.empty(s.in.qkv.shape());
  if (s.in.k_rotated) d.k_rotated = context.empty(s.in.k_rotated.shape());
  d.dt = context.empty(s.in.dt.shape(), context.statistics());
  attend_backward(context, sequence, dy, s, d);
  fill({.value = 0, .y = d.dt.slice(1, 0, cut)}, context.stream);
  scan_backward(context, sequence, dy, s, d);
  dy = s.y = s.lse = s.in.qkv = s.in.k_rotated = Tensor();
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
