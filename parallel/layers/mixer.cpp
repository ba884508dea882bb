#include "parallel/layers/mixer.h"

#include <algorithm>
#include <cmath>

#include "kernels/attention.h"
#include "kernels/conv.h"
#include "kernels/elementwise.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/ssd.h"
#include "kernels/step_size.h"

namespace transmamba {

Mixer::Mixer(const ModelConfig& c, const std::string& prefix, std::int64_t transpoint, ParameterStore& store)
    : heads_(c.num_heads),
      n_(c.qk_head_dim),
      p_(c.v_head_dim),
      conv_width_(c.conv_width),
      transpoint_(transpoint),
      gate_(c.gate),
      converter_(c.memory_converter),
      rope_theta_(c.rope_theta),
      norm_eps_(c.norm_eps) {
  const std::int64_t d = c.hidden_size, h = heads_, w = conv_width_;
  const Init normal = Init::normal(c.init_std), conv = Init::uniform(-1 / std::sqrt(w), 1 / std::sqrt(w));
  const auto matrix = [&](const char* name, std::int64_t rows) {
    return ParameterSpec{prefix + name, {{rows, d}}, normal, true};
  };
  in_ = Linear(store.add({matrix("q_proj.weight", h * n_), matrix("k_proj.weight", h * n_),
                          matrix("v_proj.weight", h * p_), matrix("z_proj.weight", h * p_),
                          matrix("dt_proj.weight", h)}));
  conv_weight_ = store.add({{prefix + "conv_q.weight", {{h * n_, w}}, conv},
                            {prefix + "conv_k.weight", {{h * n_, w}}, conv},
                            {prefix + "conv_v.weight", {{h * p_, w}}, conv}});
  conv_bias_ = store.add({{prefix + "conv_q.bias", {{h * n_}}, conv},
                          {prefix + "conv_k.bias", {{h * n_}}, conv},
                          {prefix + "conv_v.bias", {{h * p_}}, conv}});
  dt_bias_ = store.add({{prefix + "dt_bias", {{h}}, Init::step_bias(1e-3, 1e-1)}});
  a_log_ = store.add({{prefix + "A_log", {{h}}, Init::log_uniform(1, 16)}});
  d_skip_ = store.add({{prefix + "D", {{h}}, Init::constant(1)}});
  norm_weight_ = store.add({{prefix + "out_norm.weight", {{h * p_}}, Init::constant(1)}});
  out_ = Linear(
      store.add({{prefix + "out_proj.weight", {{d, h * p_}}, Init::normal(c.output_init_std()), true}}));
}

Mixer::Projections Mixer::project(const Context& context, const Tensor& u, ConstView halo) const {
  const std::int64_t b = u.dim(0), t = u.dim(1);
  Projections s{context.empty({b, t, channels() + heads_ * (p_ + 1)}), context.empty({b, t, channels()}),
                context.empty({b, t, heads_})};
  in_.forward(context, u, s.projected);
  conv({.x = conv_view(s.projected),
        .halo = halo,
        .weight = conv_weight_.value(),
        .bias = conv_bias_.value(),
        .y = s.qkv},
       context.stream);
  step_size({.raw = step_view(s.projected), .bias = dt_bias_.value(), .dt = s.dt}, context.stream);
  return s;
}

void Mixer::convert(const Context& context, ConstView k, ConstView v, ConstView dt, View state) const {
  if (converter_)
    ssd_summary({.k = k, .v = v, .dt = dt, .a_log = a_log_.value(), .state_out = state}, context.stream);
  else
    fill({.value = 0, .y = state}, context.stream);
}

void Mixer::scan(const Context& context, const Projections& in, std::int64_t cut, ConstView state,
                 const Tensor& y, View last) const {
  const std::int64_t t = y.dim(1);
  ssd_scan({.q = head_view(in.qkv, 0).slice(1, cut, t),
            .k = head_view(in.qkv, 1).slice(1, cut, t),
            .v = head_view(in.qkv, 2).slice(1, cut, t),
            .dt = in.dt.slice(1, cut, t),
            .a_log = a_log_.value(),
            .d_skip = d_skip_.value(),
            .state_in = state,
            .y = y.slice(1, cut, t),
            .state_out = last},
           context.stream);
}

std::int64_t Mixer::first_gated(std::int64_t cut, std::int64_t tokens) const {
  return gate_ == "all" ? 0 : gate_ == "none" ? tokens : cut;
}

Tensor Mixer::gate_and_norm(const Context& context, const Tensor& y, const Projections& in,
                            std::int64_t cut) const {
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

void Mixer::forward(const Context& context, const Tensor& u, View residual, Saved& s) const {
  const std::int64_t b = u.dim(0), t = u.dim(1), h = heads_, cut = std::min(transpoint_, t);
  s.transpoint = cut;
  s.u = u;

  // Project and convolve: q, k, v and step sizes for all tokens, whoever reads them.
  s.in = project(context, u, {});
  s.y = context.empty({b, t, h, p_});
  const Tensor q = head_view(s.in.qkv, 0).slice(1, 0, cut), k = head_view(s.in.qkv, 1).slice(1, 0, cut),
               v = head_view(s.in.qkv, 2).slice(1, 0, cut);

  // Attend before P.
  if (cut > 0) {
    s.q_rot = context.empty({b, cut, h, n_});
    s.k_rot = context.empty({b, cut, h, n_});
    s.lse = context.empty({b, h, cut});
    rope({.x = q, .y = s.q_rot, .theta = rope_theta_}, context.stream);
    rope({.x = k, .y = s.k_rot, .theta = rope_theta_}, context.stream);
    attention({.q = s.q_rot, .k = s.k_rot, .v = v, .o = s.y.slice(1, 0, cut), .lse = s.lse}, context.stream);
  }

  // Convert at P, and scan from P on.
  if (cut < t || s.keep_states) {
    s.state = context.empty({b, h, n_, p_});
    if (s.keep_states) s.last_state = context.empty(s.state.shape());
    convert(context, k, v, s.in.dt.slice(1, 0, cut), s.state);
    scan(context, s.in, cut, s.state, s.y, s.last_state);
  }

  // Gate, norm, project.
  s.normed = gate_and_norm(context, s.y, s.in, cut);
  out_.forward(context, s.normed.merge(2), residual, /*accumulate=*/true);
}

void Mixer::backward(const Context& context, ConstView dout, View du, Saved& s) const {
  const Stream& stream = context.stream;
  const std::int64_t t = s.u.dim(1), cut = s.transpoint;

  // Through the output projection, the norm and the gate.
  const Tensor dnormed = context.empty(s.normed.shape());
  out_.backward(context, dout, s.normed.merge(2), dnormed.merge(2));
  const Tensor dprojected = context.empty(s.in.projected.shape());
  const Tensor dy = dnormed;  // rms_norm_backward works in place
  const Tensor dz = gate_view(dprojected);
  const std::int64_t gated = first_gated(cut, t);
  const View weight = norm_weight_.value().split(0, p_), dweight = norm_weight_.grad().split(0, p_);
  if (gated > 0) {
    rms_norm_backward({.dy = dnormed.slice(1, 0, gated),
                       .x = s.y.slice(1, 0, gated),
                       .weight = weight,
                       .dx = dy.slice(1, 0, gated),
                       .dweight = dweight,
                       .eps = norm_eps_},
                      stream);
    fill({.value = 0, .y = dz.slice(1, 0, gated)}, stream);
  }
  if (gated < t)
    rms_norm_backward({.dy = dnormed.slice(1, gated, t),
                       .x = s.y.slice(1, gated, t),
                       .gate = gate_view(s.in.projected).slice(1, gated, t),
                       .weight = weight,
                       .dx = dy.slice(1, gated, t),
                       .dgate = dz.slice(1, gated, t),
                       .dweight = dweight,
                       .eps = norm_eps_},
                      stream);

  // Through the SSM, back to the state at P.
  const Tensor q = head_view(s.in.qkv, 0), k = head_view(s.in.qkv, 1), v = head_view(s.in.qkv, 2);
  const Tensor dqkv = context.empty(s.in.qkv.shape()), ddt = context.empty(s.in.dt.shape());
  const Tensor dq = head_view(dqkv, 0), dk = head_view(dqkv, 1), dv = head_view(dqkv, 2);
  Tensor dstate;
  if (cut < t) {
    dstate = context.empty(s.state.shape());
    ssd_scan_backward({.dy = dy.slice(1, cut, t),
                       .q = q.slice(1, cut, t),
                       .k = k.slice(1, cut, t),
                       .v = v.slice(1, cut, t),
                       .dt = s.in.dt.slice(1, cut, t),
                       .a_log = a_log_.value(),
                       .d_skip = d_skip_.value(),
                       .state_in = s.state,
                       .dq = dq.slice(1, cut, t),
                       .dk = dk.slice(1, cut, t),
                       .dv = dv.slice(1, cut, t),
                       .ddt = ddt.slice(1, cut, t),
                       .da_log = a_log_.grad(),
                       .dd_skip = d_skip_.grad(),
                       .dstate_in = dstate},
                      stream);
  }

  // Through attention; then the Memory Converter adds what the state asks of the prefix.
  if (cut > 0) {
    const Tensor dq_rot = context.empty(s.q_rot.shape()), dk_rot = context.empty(s.k_rot.shape());
    attention_backward({.dout = dy.slice(1, 0, cut),
                        .q = s.q_rot,
                        .k = s.k_rot,
                        .v = v.slice(1, 0, cut),
                        .o = s.y.slice(1, 0, cut),
                        .lse = s.lse,
                        .dq = dq_rot,
                        .dk = dk_rot,
                        .dv = dv.slice(1, 0, cut)},
                       stream);
    rope({.x = dq_rot, .y = dq.slice(1, 0, cut), .theta = rope_theta_, .inverse = true}, stream);
    rope({.x = dk_rot, .y = dk.slice(1, 0, cut), .theta = rope_theta_, .inverse = true}, stream);
    fill({.value = 0, .y = ddt.slice(1, 0, cut)}, stream);
    if (cut < t && converter_)
      ssd_summary_backward({.dstate_out = dstate,
                            .k = k.slice(1, 0, cut),
                            .v = v.slice(1, 0, cut),
                            .dt = s.in.dt.slice(1, 0, cut),
                            .a_log = a_log_.value(),
                            .dk = dk.slice(1, 0, cut),
                            .dv = dv.slice(1, 0, cut),
                            .ddt = ddt.slice(1, 0, cut),
                            .da_log = a_log_.grad()},
                           stream);
  }

  // Through the convolution, the softplus and the input projections.
  conv_backward({.dy = dqkv,
                 .x = conv_view(s.in.projected),
                 .weight = conv_weight_.value(),
                 .bias = conv_bias_.value(),
                 .dx = conv_view(dprojected),
                 .dweight = conv_weight_.grad(),
                 .dbias = conv_bias_.grad()},
                stream);
  step_size_backward({.ddt = ddt, .dt = s.in.dt, .draw = step_view(dprojected), .dbias = dt_bias_.grad()},
                     stream);
  in_.backward(context, dprojected, s.u, du);
}

}  // namespace transmamba
