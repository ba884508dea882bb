#include "tools/kernel_cases.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "core/random.h"
#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "kernels/ssd.h"

namespace transmamba {

Tensor Buffers::make(const Shape& shape, DType dtype, double low, double high) {
  const Tensor x = context_.empty(shape, dtype);
  const std::int64_t all = x.numel(), drawn = std::min<std::int64_t>(all, 1 << 18);  // and then repeated
  const Tensor host = context_.empty_host({drawn}, statistics_of(dtype));
  const std::uint64_t stream = draw_++;
  const auto draw = [&](auto* to) {
    for (std::int64_t i = 0; i < drawn; ++i)
      to[i] = static_cast<std::decay_t<decltype(*to)>>(
          low + (high - low) * uniform(0, stream, static_cast<std::uint64_t>(i)));
  };
  host.dtype() == DType::f64 ? draw(host.ptr<double>()) : draw(host.ptr<float>());
  const View flat(x.view().raw(), dtype, {all});
  from_host(context_, host, flat.slice(0, 0, drawn));
  for (std::int64_t done = drawn; done < all; done *= 2) {
    const std::int64_t more = std::min(done, all - done);
    copy({.x = flat.slice(0, 0, more), .y = flat.slice(0, done, done + more)}, context_.stream);
  }
  return x;
}

Tensor Buffers::make_tokens(const Shape& shape, std::int64_t count) {
  const Tensor host = context_.empty_host(shape, DType::i32);
  for (std::int64_t i = 0; i < host.numel(); ++i)
    host.ptr<std::int32_t>()[i] = static_cast<std::int32_t>(i * 1'000'003 % count);
  return to_device(context_, host);
}

Tensor Buffers::make_text(const Shape& shape, std::int64_t count, std::int64_t& distinct) {
  const Tensor host = context_.empty_host(shape, DType::i32);
  const std::uint64_t stream = draw_++;
  std::set<std::int32_t> words;
  for (std::int64_t i = 0; i < host.numel(); ++i) {
    const double rank =
        std::pow(static_cast<double>(count), uniform(0, stream, static_cast<std::uint64_t>(i)));
    const auto word = static_cast<std::int32_t>(std::min<double>(rank, static_cast<double>(count))) - 1;
    words.insert(host.ptr<std::int32_t>()[i] = word);
  }
  distinct = static_cast<std::int64_t>(words.size());
  return to_device(context_, host);
}

namespace {

/// Forward, gradient of the input, gradient of the weight.
void add_product(const ModelShapes& m, KernelCases& cases, const std::string& name, std::int64_t out,
                 std::int64_t in, bool with_residual) {
  const std::int64_t tokens = m.b * m.t;
  const double flops = 2.0 * static_cast<double>(tokens * out) * static_cast<double>(in);
  const auto shape = [](std::int64_t m, std::int64_t n, std::int64_t k) {
    return fmt::format("{} x {} x {}", m, n, k);
  };
  cases.add("gemm_" + name, shape(tokens, out, in), flops, [=](Buffers& b) {
    const Tensor x = b.reads(b.make({tokens, in})), w = b.reads(b.make({out, in}));
    const Tensor residual = with_residual ? b.reads(b.make({tokens, out})) : Tensor();
    const Tensor y = b.writes(b.make({tokens, out}));
    return KernelCall([=, s = b.context().stream] {
      gemm({.a = x, .b = w, .transpose_b = true, .addend = residual, .c = y, .beta = residual ? 1.0 : 0.0},
           s);
    });
  });
  cases.add("gemm_" + name + "_dx", shape(tokens, in, out), flops, [=](Buffers& b) {
    const Tensor dy = b.reads(b.make({tokens, out})), w = b.reads(b.make({out, in}));
    const Tensor dx = b.writes(b.make({tokens, in}));
    return KernelCall([=, s = b.context().stream] { gemm({.a = dy, .b = w, .c = dx}, s); });
  });
  cases.add("gemm_" + name + "_dw", shape(out, in, tokens), flops, [=](Buffers& b) {
    const Tensor dy = b.reads(b.make({tokens, out})), x = b.reads(b.make({tokens, in}));
    const Tensor dw = b.updates(b.statistics({out, in}));
    return KernelCall(
        [=, s = b.context().stream] { gemm({.a = dy, .transpose_a = true, .b = x, .c = dw, .beta = 1}, s); });
  });
}

}  // namespace

void add_product_cases(const ModelShapes& m, KernelCases& cases) {
  add_product(m, cases, "in_proj", m.projected, m.d, false);
  add_product(m, cases, "out_proj", m.d, m.h * m.p, true);
  add_product(m, cases, "mlp_in", 2 * m.f, m.d, false);
  add_product(m, cases, "mlp_out", m.d, m.f, true);
  add_product(m, cases, "head", m.V, m.d, false);
}

void add_attention_cases(const ModelShapes& m, KernelCases& cases) {
  const double keys = static_cast<double>(m.t + 1) / 2;
  cases.add("attention", m.heads(), 2 * keys * m.per_head(m.n + m.p), [=](Buffers& b) {
    const Tensor packed = b.make({m.b, m.t, m.channels}), q = b.reads(m.q_of(packed)),
                 v = b.reads(m.v_of(packed));
    const Tensor k = b.reads(b.make({m.b, m.t, m.h, m.n})), o = b.writes(b.make({m.b, m.t, m.h, m.p}));
    const Tensor lse = b.writes(b.statistics({m.b, m.h, m.t}));
    return KernelCall(
        [=, s = b.context().stream] { attention({.q = q, .k = k, .v = v, .o = o, .lse = lse}, s); });
  });
  cases.add("attention_backward", m.heads(), 2 * keys * m.per_head(3 * m.n + 2 * m.p), [=](Buffers& b) {
    const Tensor packed = b.make({m.b, m.t, m.channels}), q = b.reads(m.q_of(packed)),
                 v = b.reads(m.v_of(packed));
    const Tensor k = b.reads(b.make({m.b, m.t, m.h, m.n})), o = b.reads(b.make({m.b, m.t, m.h, m.p}));
    const Tensor lse = b.reads(b.statistics({m.b, m.h, m.t})), dout = b.reads(b.make({m.b, m.t, m.h, m.p}));
    const Tensor dpacked = b.make({m.b, m.t, m.channels}), dq = b.writes(m.q_of(dpacked));
    const Tensor dk = b.writes(b.make({m.b, m.t, m.h, m.n})), dv = b.writes(m.v_of(dpacked));
    const Stream s = b.context().stream;
    attention({.q = q, .k = k, .v = v, .o = o, .lse = lse}, s);  // or probabilities would not sum to 1
    return KernelCall([=] {
      attention_backward(
          {.dout = dout, .q = q, .k = k, .v = v, .o = o, .lse = lse, .dq = dq, .dk = dk, .dv = dv}, s);
    });
  });
}

namespace {

struct Ssd {
  Tensor q, k, v, dt, a_log, d_skip, state;
};
Ssd ssd(const ModelShapes& m, Buffers& b, bool scans) {
  const Tensor packed = b.make({m.b, m.t, m.channels}), none;
  return {scans ? b.reads(m.q_of(packed)) : none,
          b.reads(m.k_of(packed)),
          b.reads(m.v_of(packed)),
          b.reads(b.statistics({m.b, m.t, m.h}, 1e-3, 1e-1)),
          b.reads(b.statistics({m.h}, 0, 2.8)),
          scans ? b.reads(b.statistics({m.h})) : none,
          scans ? b.reads(b.statistics({m.b, m.h, m.n, m.p})) : none};
}

}  // namespace

void add_ssd_cases(const ModelShapes& m, KernelCases& cases) {
  const double product = 2 * m.per_head(m.n * m.p);
  cases.add("ssd_summary", m.heads(), product, [=](Buffers& b) {
    const Ssd x = ssd(m, b, false);
    const Tensor state = b.writes(b.statistics({m.b, m.h, m.n, m.p}));
    return KernelCall([=, s = b.context().stream] {
      ssd_summary({.k = x.k, .v = x.v, .dt = x.dt, .a_log = x.a_log, .state_out = state}, s);
    });
  });
  cases.add("ssd_summary_backward", m.heads(), 2 * product, [=](Buffers& b) {
    const Ssd x = ssd(m, b, false);
    const Tensor dpacked = b.make({m.b, m.t, m.channels}), dk = b.updates(m.k_of(dpacked));
    const Tensor dv = b.updates(m.v_of(dpacked)), ddt = b.updates(b.statistics({m.b, m.t, m.h}));
    const Tensor da = b.updates(b.statistics({m.h})), dstate = b.reads(b.statistics({m.b, m.h, m.n, m.p}));
    return KernelCall([=, s = b.context().stream] {
      ssd_summary_backward({.dstate_out = dstate,
                            .k = x.k,
                            .v = x.v,
                            .dt = x.dt,
                            .a_log = x.a_log,
                            .dk = dk,
                            .dv = dv,
                            .ddt = ddt,
                            .da_log = da},
                           s);
    });
  });
  cases.add("ssd_entry_gradient", m.heads(), product, [=](Buffers& b) {
    const Ssd x = ssd(m, b, true);
    const Tensor dy = b.reads(b.make({m.b, m.t, m.h, m.p}));
    const Tensor dstate = b.writes(b.statistics({m.b, m.h, m.n, m.p}));
    return KernelCall([=, s = b.context().stream] {
      ssd_entry_gradient({.dy = dy, .q = x.q, .dt = x.dt, .a_log = x.a_log, .dstate_in = dstate}, s);
    });
  });
  cases.add("ssd_scan", m.heads(), 2 * product, [=](Buffers& b) {
    const Ssd x = ssd(m, b, true);
    const Tensor y = b.writes(b.make({m.b, m.t, m.h, m.p}));
    return KernelCall([=, s = b.context().stream] {
      ssd_scan({.q = x.q,
                .k = x.k,
                .v = x.v,
                .dt = x.dt,
                .a_log = x.a_log,
                .d_skip = x.d_skip,
                .state_in = x.state,
                .y = y},
               s);
    });
  });
  cases.add("ssd_scan_backward", m.heads(), 5 * product, [=](Buffers& b) {
    const Ssd x = ssd(m, b, true);
    const Tensor dpacked = b.make({m.b, m.t, m.channels}), dq = b.writes(m.q_of(dpacked));
    const Tensor dk = b.writes(m.k_of(dpacked)), dv = b.writes(m.v_of(dpacked));
    const Tensor ddt = b.writes(b.statistics({m.b, m.t, m.h})), da = b.updates(b.statistics({m.h}));
    const Tensor dd = b.updates(b.statistics({m.h})), dy = b.reads(b.make({m.b, m.t, m.h, m.p}));
    const Tensor dstate = b.writes(b.statistics({m.b, m.h, m.n, m.p}));
    return KernelCall([=, s = b.context().stream] {
      ssd_scan_backward({.dy = dy,
                         .q = x.q,
                         .k = x.k,
                         .v = x.v,
                         .dt = x.dt,
                         .a_log = x.a_log,
                         .d_skip = x.d_skip,
                         .state_in = x.state,
                         .dq = dq,
                         .dk = dk,
                         .dv = dv,
                         .ddt = ddt,
                         .da_log = da,
                         .dd_skip = dd,
                         .dstate_in = dstate},
                        s);
    });
  });
}

void KernelCases::add(std::string name, std::string shape, double flops,
                      std::function<KernelCall(Buffers&)> prepare) {
  all.push_back({std::move(name), std::move(shape), flops, std::move(prepare)});
}

ModelShapes::ModelShapes(const Config& c)
    : b(c.train.micro_batch),
      t(c.train.seq_len),
      d(c.model.hidden_size),
      h(c.model.num_heads),
      n(c.model.qk_head_dim),
      p(c.model.v_head_dim),
      f(c.model.ffn_hidden_size),
      w(c.model.conv_width),
      V(c.model.vocab_size),
      channels(h * (2 * n + p)),
      projected((channels + h * (p + 1) + 7) / 8 * 8),
      theta(c.model.rope_theta),
      eps(c.model.norm_eps) {}

std::string ModelShapes::rows(std::int64_t width) const { return fmt::format("{} x {} x {}", b, t, width); }
std::string ModelShapes::heads() const {
  return fmt::format("{} x {}, {} heads of {} and {}", b, t, h, n, p);
}

std::vector<KernelCase> kernel_cases(const Config& config) {
  const ModelShapes m(config);
  KernelCases cases;
  add_product_cases(m, cases);
  add_attention_cases(m, cases);
  add_ssd_cases(m, cases);
  add_activation_cases(m, cases);
  add_norm_cases(m, cases);
  add_vocabulary_cases(m, cases);
  add_upkeep_cases(m, cases);
  return std::move(cases.all);
}

}  // namespace transmamba
