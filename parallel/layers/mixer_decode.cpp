// Decoding: the forward pass of mixer.cpp for the tokens that follow those in a cache.
#include <algorithm>

#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/ssd.h"
#include "parallel/layers/mixer.h"

namespace transmamba {

Mixer::Cache::Cache(const Context& context, const Mixer& mixer, std::int64_t batch, std::int64_t max_tokens) {
  const std::int64_t keys = std::min(mixer.transpoint_, max_tokens), h = mixer.heads_;
  halo = context.empty({batch, mixer.conv_width_ - 1, mixer.channels()});
  fill({.value = 0, .y = halo}, context.stream);
  k = context.empty({batch, keys, h, mixer.n_});
  k_rotated = context.empty({batch, keys, h, mixer.n_});
  v = context.empty({batch, keys, h, mixer.p_});
  dt = context.empty({batch, keys, h}, context.statistics());
}

void Mixer::decode(const Context& context, const Tensor& u, std::int64_t b, View residual,
                   Cache& cache) const {
  const Stream& stream = context.stream;
  const std::int64_t t = u.dim(0) / b, h = heads_, begin = cache.position;
  const std::int64_t cut =
      std::clamp<std::int64_t>(transpoint_ - begin, 0, t);  // of these tokens, how many attend
  const std::int64_t attended = begin + cut;
  check(cut == 0 || attended <= cache.k.dim(1), "decode", "cache: made for {} tokens, got token {}",
        cache.k.dim(1), attended);

  Projections in = project(context, u, b, t);
  in.qkv = context.empty({b, t, channels()});
  if (cut > 0) in.k_rotated = cache.k_rotated.slice(1, begin, attended);
  convolve(context, in, {0, cut, t, begin, 0, true}, cache.halo);
  const std::int64_t width = conv_width_ - 1, kept = std::max<std::int64_t>(0, width - t);
  const Tensor halo = context.empty(cache.halo.shape());
  copy({.x = cache.halo.slice(1, width - kept, width), .y = halo.slice(1, 0, kept)}, stream);
  copy({.x = conv_view(in.projected).slice(1, t - (width - kept), t), .y = halo.slice(1, kept, width)},
       stream);
  cache.halo = halo;

  const Tensor q = head_view(in.qkv, 0), k = head_view(in.qkv, 1), v = head_view(in.qkv, 2),
               y = context.empty({b, t, h, p_});
  if (cut > 0) {
    const Tensor lse = context.empty({b, h, cut}, context.statistics());
    copy({.x = k.slice(1, 0, cut), .y = cache.k.slice(1, begin, attended)}, stream);
    copy({.x = v.slice(1, 0, cut), .y = cache.v.slice(1, begin, attended)}, stream);
    copy({.x = in.dt.slice(1, 0, cut), .y = cache.dt.slice(1, begin, attended)}, stream);
    attention({.q = q.slice(1, 0, cut),
               .k = cache.k_rotated.slice(1, 0, attended),
               .v = cache.v.slice(1, 0, attended),
               .o = y.slice(1, 0, cut),
               .lse = lse,
               .offset = begin},
              stream);
  }
  if (attended == transpoint_ && !cache.state) {  // the prefix is whole: convert it once, then free it
    cache.state = context.empty({b, h, n_, p_}, context.statistics());
    if (converter_)
      ssd_summary(
          {.k = cache.k, .v = cache.v, .dt = cache.dt, .a_log = a_log_.value(), .state_out = cache.state},
          stream);
    else
      fill({.value = 0, .y = cache.state}, stream);
    cache.k = cache.k_rotated = cache.v = cache.dt = Tensor();
  }
  if (cut < t) scan(context, in, cut, t, cache.state, y, cache.state);

  out_.forward(context, gate_and_norm(context, y, in, cut).merge(2).merge(0), residual, residual);
  cache.position += t;
}

}  // namespace transmamba
