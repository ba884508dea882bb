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

template <class AnyView>
AnyView Mixer::head_view(const AnyView& qkv, int part) const {
  const std::int64_t begin = part * heads_ * n_, width = part == 2 ? p_ : n_;
  return qkv.slice(2, begin, begin + heads_ * width).split(2, width);
}
template <class AnyView>
AnyView Mixer::gate_view(const AnyView& projected) const {
  return projected.slice(2, channels(), channels() + heads_ * p_).split(2, p_);
}
template <class AnyView>
AnyView Mixer::step_view(const AnyView& projected) const {
  return projected.slice(2, channels() + heads_ * p_, channels() + heads_ * (p_ + 1));
}

std::int64_t Mixer::first_gated(std::int64_t transpoint, std::int64_t tokens) const {
  return gate_ == "all" ? 0 : gate_ == "none" ? tokens : transpoint;
}

void Mixer::norm(const Context& context, const Tensor& y, const Tensor& projected, std::int64_t transpoint,
                 View rstd, View normed) const {
  const std::int64_t t = y.dim(1), cut = first_gated(transpoint, t);
  const View weight = norm_weight_.value().split(0, p_);
  if (cut > 0)
    rms_norm({.x = y.slice(1, 0, cut),
              .weight = weight,
              .y = normed.slice(1, 0, cut),
              .rstd = rstd.slice(1, 0, cut),
              .eps = norm_eps_},
             context.stream);
  if (cut < t)
    rms_norm({.x = y.slice(1, cut, t),
              .gate = gate_view(projected).slice(1, cut, t),
              .weight = weight,
              .y = normed.slice(1, cut, t),
              .rstd = rstd.slice(1, cut, t),
              .eps = norm_eps_},
             context.stream);
}

void Mixer::forward(const Context& context, const Tensor& u, View residual, Saved& s) const {
  const Stream& stream = context.stream;
  const std::int64_t b = u.dim(0), t = u.dim(1), h = heads_, cut = std::min(transpoint_, t);
  s.transpoint = cut;
  s.u = u;

  // Project and convolve: q, k, v for all tokens, whoever reads them; step sizes too.
  s.projected = context.empty({b, t, channels() + h * (p_ + 1)});
  in_.forward(context, u, s.projected);
  s.qkv = context.empty({b, t, channels()});
  conv({.x = s.projected.slice(2, 0, channels()),
        .weight = conv_weight_.value(),
        .bias = conv_bias_.value(),
        .y = s.qkv},
       stream);
  s.dt = context.empty({b, t, h});
  step_size({.raw = step_view(s.projected), .bias = dt_bias_.value(), .dt = s.dt}, stream);
  const Tensor q = head_view(s.qkv, 0), k = head_view(s.qkv, 1), v = head_view(s.qkv, 2);
  s.y = context.empty({b, t, h, p_});

  // Attend before P.
  if (cut > 0) {
    s.q_rot = context.empty({b, cut, h, n_});
    s.k_rot = context.empty({b, cut, h, n_});
    s.lse = context.empty({b, h, cut});
    rope({.x = q.slice(1, 0, cut), .y = s.q_rot, .theta = rope_theta_}, stream);
    rope({.x = k.slice(1, 0, cut), .y = s.k_rot, .theta = rope_theta_}, stream);
    attention({.q = s.q_rot, .k = s.k_rot, .v = v.slice(1, 0, cut), .o = s.y.slice(1, 0, cut), .lse = s.lse},
              stream);
  }

  // Convert at P: the prefix's summary is the state the SSM starts from.
  if (cut < t || s.keep_states) {
    s.state = context.empty({b, h, n_, p_});
    if (converter_)
      ssd_summary({.k = k.slice(1, 0, cut),
                   .v = v.slice(1, 0, cut),
                   .dt = s.dt.slice(1, 0, cut),
                   .a_log = a_log_.value(),
                   .state_out = s.state},
                  stream);
    else
      fill({.value = 0, .y = s.state}, stream);
  }

  // Scan from P on.
  if (s.keep_states) s.last_state = context.empty({b, h, n_, p_});
  if (cut < t || s.keep_states)
    ssd_scan({.q = q.slice(1, cut, t),
              .k = k.slice(1, cut, t),
              .v = v.slice(1, cut, t),
              .dt = s.dt.slice(1, cut, t),
              .a_log = a_log_.value(),
              .d_skip = d_skip_.value(),
              .state_in = s.state,
              .y = s.y.slice(1, cut, t),
              .state_out = s.last_state},
             stream);

  // Gate, norm, project.
  s.rstd = context.empty({b, t, h});
  s.normed = context.empty({b, t, h, p_});
  norm(context, s.y, s.projected, cut, s.rstd, s.normed);
  out_.forward(context, s.normed.merge(2), residual, /*accumulate=*/true);
}

void Mixer::backward(const Context& context, ConstView dout, View du, Saved& s) const {
  const Stream& stream = context.stream;
  const std::int64_t t = s.u.dim(1), cut = s.transpoint;

  // Through the output projection, the norm and the gate.
  const Tensor dnormed = context.empty(s.normed.shape());
  out_.backward(context, dout, s.normed.merge(2), dnormed.merge(2));
  const Tensor dprojected = context.empty(s.projected.shape());
  const Tensor dy = dnormed;  // rms_norm_backward works in place
  const Tensor dz = gate_view(dprojected);
  const std::int64_t gated = first_gated(cut, t);
  const View weight = norm_weight_.value().split(0, p_), dweight = norm_weight_.grad().split(0, p_);
  if (gated > 0) {
    rms_norm_backward({.dy = dnormed.slice(1, 0, gated),
                       .x = s.y.slice(1, 0, gated),
                       .weight = weight,
                       .rstd = s.rstd.slice(1, 0, gated),
                       .dx = dy.slice(1, 0, gated),
                       .dweight = dweight},
                      stream);
    fill({.value = 0, .y = dz.slice(1, 0, gated)}, stream);
  }
  if (gated < t)
    rms_norm_backward({.dy = dnormed.slice(1, gated, t),
                       .x = s.y.slice(1, gated, t),
                       .gate = gate_view(s.projected).slice(1, gated, t),
                       .weight = weight,
                       .rstd = s.rstd.slice(1, gated, t),
                       .dx = dy.slice(1, gated, t),
                       .dgate = dz.slice(1, gated, t),
                       .dweight = dweight},
                      stream);

  // Through the SSM, back to the state at P.
  const Tensor q = head_view(s.qkv, 0), k = head_view(s.qkv, 1), v = head_view(s.qkv, 2);
  const Tensor dqkv = context.empty(s.qkv.shape()), ddt = context.empty(s.dt.shape());
  const Tensor dq = head_view(dqkv, 0), dk = head_view(dqkv, 1), dv = head_view(dqkv, 2);
  Tensor dstate;
  if (cut < t) {
    dstate = context.empty(s.state.shape());
    ssd_scan_backward({.dy = dy.slice(1, cut, t),
                       .q = q.slice(1, cut, t),
                       .k = k.slice(1, cut, t),
                       .v = v.slice(1, cut, t),
                       .dt = s.dt.slice(1, cut, t),
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
                            .dt = s.dt.slice(1, 0, cut),
                            .a_log = a_log_.value(),
                            .dk = dk.slice(1, 0, cut),
                            .dv = dv.slice(1, 0, cut),
                            .ddt = ddt.slice(1, 0, cut),
                            .da_log = a_log_.grad()},
                           stream);
  }

  // Through the convolution, the softplus and the input projections.
  conv_backward({.dy = dqkv,
                 .x = s.projected.slice(2, 0, channels()),
                 .weight = conv_weight_.value(),
                 .bias = conv_bias_.value(),
                 .dx = dprojected.slice(2, 0, channels()),
                 .dweight = conv_weight_.grad(),
                 .dbias = conv_bias_.grad()},
                stream);
  step_size_backward({.ddt = ddt, .dt = s.dt, .draw = step_view(dprojected), .dbias = dt_bias_.grad()},
                     stream);
  in_.backward(context, dprojected, s.u, du);
}

Mixer::Cache::Cache(const Context& context, const Mixer& mixer, std::int64_t batch, std::int64_t max_tokens) {
  const std::int64_t keys = std::min(mixer.transpoint_, max_tokens), h = mixer.heads_;
  halo = context.empty({batch, mixer.conv_width_ - 1, mixer.channels()});
  fill({.value = 0, .y = halo}, context.stream);
  k = context.empty({batch, keys, h, mixer.n_});
  k_rot = context.empty({batch, keys, h, mixer.n_});
  v = context.empty({batch, keys, h, mixer.p_});
  dt = context.empty({batch, keys, h});
}

void Mixer::decode(const Context& context, const Tensor& u, View residual, Cache& cache) const {
  const Stream& stream = context.stream;
  const std::int64_t b = u.dim(0), t = u.dim(1), h = heads_, begin = cache.position;
  const std::int64_t cut =
      std::clamp<std::int64_t>(transpoint_ - begin, 0, t);  // of these tokens, how many attend
  const std::int64_t attended = begin + cut;

  const Tensor projected = context.empty({b, t, channels() + h * (p_ + 1)});
  in_.forward(context, u, projected);
  const Tensor before = projected.slice(2, 0, channels());
  const Tensor qkv = context.empty({b, t, channels()}), dt = context.empty({b, t, h});
  conv(
      {.x = before, .halo = cache.halo, .weight = conv_weight_.value(), .bias = conv_bias_.value(), .y = qkv},
      stream);
  step_size({.raw = step_view(projected), .bias = dt_bias_.value(), .dt = dt}, stream);
  const std::int64_t width = conv_width_ - 1, kept = std::max<std::int64_t>(0, width - t);
  const Tensor halo = context.empty(cache.halo.shape());
  copy({.x = cache.halo.slice(1, width - kept, width), .y = halo.slice(1, 0, kept)}, stream);
  copy({.x = before.slice(1, t - (width - kept), t), .y = halo.slice(1, kept, width)}, stream);
  cache.halo = halo;

  const Tensor q = head_view(qkv, 0), k = head_view(qkv, 1), v = head_view(qkv, 2),
               y = context.empty({b, t, h, p_});
  if (cut > 0) {
    check(attended <= cache.k.dim(1), "decode", "cache: made for {} tokens, got token {}", cache.k.dim(1),
          attended);
    const Tensor q_rot = context.empty({b, cut, h, n_}), lse = context.empty({b, h, cut});
    rope({.x = q.slice(1, 0, cut), .y = q_rot, .position = begin, .theta = rope_theta_}, stream);
    rope({.x = k.slice(1, 0, cut),
          .y = cache.k_rot.slice(1, begin, attended),
          .position = begin,
          .theta = rope_theta_},
         stream);
    copy({.x = k.slice(1, 0, cut), .y = cache.k.slice(1, begin, attended)}, stream);
    copy({.x = v.slice(1, 0, cut), .y = cache.v.slice(1, begin, attended)}, stream);
    copy({.x = dt.slice(1, 0, cut), .y = cache.dt.slice(1, begin, attended)}, stream);
    attention({.q = q_rot,
               .k = cache.k_rot.slice(1, 0, attended),
               .v = cache.v.slice(1, 0, attended),
               .o = y.slice(1, 0, cut),
               .lse = lse,
               .offset = begin},
              stream);
  }
  if (attended == transpoint_ && !cache.state) {  // the prefix is whole: convert it once, then free it
    cache.state = context.empty({b, h, n_, p_});
    fill({.value = 0, .y = cache.state}, stream);
    if (converter_)
      ssd_summary(
          {.k = cache.k, .v = cache.v, .dt = cache.dt, .a_log = a_log_.value(), .state_out = cache.state},
          stream);
    cache.k = cache.k_rot = cache.v = cache.dt = Tensor();
  }
  if (cut < t)
    ssd_scan({.q = q.slice(1, cut, t),
              .k = k.slice(1, cut, t),
              .v = v.slice(1, cut, t),
              .dt = dt.slice(1, cut, t),
              .a_log = a_log_.value(),
              .d_skip = d_skip_.value(),
              .state_in = cache.state,
              .y = y.slice(1, cut, t),
              .state_out = cache.state},
             stream);

  const Tensor rstd = context.empty({b, t, h}), normed = context.empty({b, t, h, p_});
  norm(context, y, projected, cut, rstd, normed);
  out_.forward(context, normed.merge(2), residual, /*accumulate=*/true);
  cache.position += t;
}

}  // namespace transmamba
