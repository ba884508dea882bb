// Kernels that are bound by memory: what they move is all that counts.
#include <fmt/format.h>

#include <algorithm>

#include "kernels/adamw.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/qkv_conv.h"
#include "kernels/rms_norm.h"
#include "kernels/step_size.h"
#include "kernels/swiglu.h"
#include "tools/kernel_cases.h"

namespace transmamba {

namespace {

/// RoPE turns the tokens before `prefix`; of a layer that has tokens after it too, k is kept unturned as
/// well.
void add_qkv_conv_cases(const ModelShapes& m, KernelCases& cases, const std::string& name,
                        std::int64_t prefix) {
  const std::string shape = fmt::format("{}, width {}, RoPE to {}", m.rows(m.channels), m.w, prefix);
  const bool keeps_k = 0 < prefix && prefix < m.t;
  const auto turned_k = [=](Buffers& b) { return keeps_k ? b.make({m.b, prefix, m.h, m.n}) : Tensor(); };
  cases.add("qkv_conv" + name, shape, 0, [=](Buffers& b) {
    const Tensor x = b.reads(b.make({m.b, m.t, m.projected}).slice(2, 0, m.channels));
    const Tensor weight = b.reads(b.statistics({m.channels, m.w})),
                 bias = b.reads(b.statistics({m.channels}));
    const Tensor y = b.writes(b.make({m.b, m.t, m.channels})), k = turned_k(b);
    if (k) b.writes(k);
    return KernelCall([=, s = b.context().stream] {
      qkv_conv({.x = x,
                .weight = weight,
                .bias = bias,
                .y = y,
                .k_rotated = k,
                .heads = m.h,
                .qk_width = m.n,
                .rotated = prefix,
                .theta = m.theta},
               s);
    });
  });
  cases.add("qkv_conv_backward" + name, shape, 0, [=](Buffers& b) {
    const Tensor x = b.reads(b.make({m.b, m.t, m.projected}).slice(2, 0, m.channels));
    const Tensor weight = b.reads(b.statistics({m.channels, m.w})),
                 bias = b.reads(b.statistics({m.channels}));
    const Tensor dy = b.reads(b.make({m.b, m.t, m.channels})), dk = turned_k(b);
    if (dk) b.reads(dk);
    const Tensor dx = b.writes(b.make({m.b, m.t, m.projected}).slice(2, 0, m.channels));
    const Tensor dweight = b.updates(b.statistics({m.channels, m.w})),
                 dbias = b.updates(b.statistics({m.channels}));
    return KernelCall([=, s = b.context().stream] {
      qkv_conv_backward({.dy = dy,
                         .dk_rotated = dk,
                         .x = x,
                         .weight = weight,
                         .bias = bias,
                         .dx = dx,
                         .dweight = dweight,
                         .dbias = dbias,
                         .heads = m.h,
                         .qk_width = m.n,
                         .rotated = prefix,
                         .theta = m.theta},
                        s);
    });
  });
}

}  // namespace

/// The TransPoint is half way, at 0 and at the end.
void add_activation_cases(const ModelShapes& m, KernelCases& cases) {
  add_qkv_conv_cases(m, cases, "", m.t / 2);
  add_qkv_conv_cases(m, cases, "_ssm", 0);
  add_qkv_conv_cases(m, cases, "_rope", m.t);
  cases.add("swiglu", m.rows(2 * m.f), 0, [=](Buffers& b) {
    const Tensor x = b.reads(b.make({m.b, m.t, 2 * m.f})), y = b.writes(b.make({m.b, m.t, m.f}));
    return KernelCall([=, s = b.context().stream] { swiglu({.gate_up = x, .y = y}, s); });
  });
  cases.add("swiglu_backward", m.rows(2 * m.f), 0, [=](Buffers& b) {
    const Tensor x = b.reads(b.make({m.b, m.t, 2 * m.f})), dy = b.reads(b.make({m.b, m.t, m.f}));
    const Tensor dx = b.writes(b.make({m.b, m.t, 2 * m.f}));
    return KernelCall(
        [=, s = b.context().stream] { swiglu_backward({.dy = dy, .gate_up = x, .dgate_up = dx}, s); });
  });
  cases.add("step_size", m.rows(m.h), 0, [=](Buffers& b) {
    const Tensor raw = b.reads(m.dt_of(b.make({m.b, m.t, m.projected}))), bias = b.reads(b.statistics({m.h}));
    const Tensor dt = b.writes(b.statistics({m.b, m.t, m.h}));
    return KernelCall([=, s = b.context().stream] { step_size({.raw = raw, .bias = bias, .dt = dt}, s); });
  });
  cases.add("step_size_backward", m.rows(m.h), 0, [=](Buffers& b) {
    const Tensor ddt = b.reads(b.statistics({m.b, m.t, m.h})),
                 dt = b.reads(b.statistics({m.b, m.t, m.h}, 0, 0.1));
    const Tensor draw = b.writes(m.dt_of(b.make({m.b, m.t, m.projected}))),
                 dbias = b.updates(b.statistics({m.h}));
    return KernelCall([=, s = b.context().stream] {
      step_size_backward({.ddt = ddt, .dt = dt, .draw = draw, .dbias = dbias}, s);
    });
  });
}

void add_norm_cases(const ModelShapes& m, KernelCases& cases) {
  const Shape wide{m.b, m.t, 1, m.d}, heads{m.b, m.t, m.h, m.p};
  cases.add("rms_norm", m.rows(m.d), 0, [=](Buffers& b) {
    const Tensor x = b.reads(b.make(wide)), weight = b.reads(b.statistics({1, m.d}));
    const Tensor y = b.writes(b.make(wide));
    return KernelCall(
        [=, s = b.context().stream] { rms_norm({.x = x, .weight = weight, .y = y, .eps = m.eps}, s); });
  });
  cases.add("rms_norm_backward", m.rows(m.d) + " and residual", 0, [=](Buffers& b) {
    const Tensor x = b.reads(b.make(wide)), weight = b.reads(b.statistics({1, m.d}));
    const Tensor dy = b.reads(b.make(wide)), dresidual = b.reads(b.make(wide)), dx = b.writes(b.make(wide));
    const Tensor dweight = b.updates(b.statistics({1, m.d}));
    return KernelCall([=, s = b.context().stream] {
      rms_norm_backward({.dy = dy,
                         .x = x,
                         .weight = weight,
                         .dresidual = dresidual,
                         .dx = dx,
                         .dweight = dweight,
                         .eps = m.eps},
                        s);
    });
  });
  const std::string shape = fmt::format("{} x {} x {} x {}", m.b, m.t, m.h, m.p);
  cases.add("gated_norm", shape, 0, [=](Buffers& b) {
    const Tensor x = b.reads(b.make(heads)), z = b.reads(m.z_of(b.make({m.b, m.t, m.projected})));
    const Tensor weight = b.reads(b.statistics({m.h, m.p})), y = b.writes(b.make(heads));
    return KernelCall([=, s = b.context().stream] {
      rms_norm({.x = x, .gate = z, .weight = weight, .y = y, .eps = m.eps}, s);
    });
  });
  cases.add("gated_norm_backward", shape, 0, [=](Buffers& b) {
    const Tensor x = b.reads(b.make(heads)), z = b.reads(m.z_of(b.make({m.b, m.t, m.projected})));
    const Tensor weight = b.reads(b.statistics({m.h, m.p})), dy = b.reads(b.make(heads));
    const Tensor dx = b.writes(b.make(heads)), dz = b.writes(m.z_of(b.make({m.b, m.t, m.projected})));
    const Tensor dweight = b.updates(b.statistics({m.h, m.p}));
    return KernelCall([=, s = b.context().stream] {
      rms_norm_backward({.dy = dy,
                         .x = x,
                         .gate = z,
                         .weight = weight,
                         .dx = dx,
                         .dgate = dz,
                         .dweight = dweight,
                         .eps = m.eps},
                        s);
    });
  });
}

void add_vocabulary_cases(const ModelShapes& m, KernelCases& cases) {
  const std::int64_t used = std::min(m.V, m.b * m.t);
  const std::string words = fmt::format("{} of {} words", m.rows(m.d), m.V);
  cases.add("embedding", words, 0, [=](Buffers& b) {
    const Tensor tokens = b.reads(b.make_tokens({m.b, m.t}, m.V)), weight = b.make({m.V, m.d});
    const Tensor y = b.writes(b.make({m.b, m.t, m.d}));
    b.reads(weight.slice(0, 0, used));
    return KernelCall(
        [=, s = b.context().stream] { embedding({.tokens = tokens, .weight = weight, .y = y}, s); });
  });
  cases.add("embedding_backward", words, 0, [=](Buffers& b) {
    const Tensor tokens = b.reads(b.make_tokens({m.b, m.t}, m.V)), dweight = b.statistics({m.V, m.d});
    const Tensor dy = b.reads(b.make({m.b, m.t, m.d}));
    b.updates(dweight.slice(0, 0, used));
    return KernelCall([=, s = b.context().stream] {
      embedding_backward({.dy = dy, .tokens = tokens, .dweight = dweight}, s);
    });
  });
  // In text a few words are most of the tokens.
  cases.add("embedding_backward_text", m.rows(m.d) + " of text", 0, [=](Buffers& b) {
    std::int64_t distinct = 0;
    const Tensor tokens = b.reads(b.make_text({m.b, m.t}, m.V, distinct)), dweight = b.statistics({m.V, m.d});
    const Tensor dy = b.reads(b.make({m.b, m.t, m.d}));
    b.updates(dweight.slice(0, 0, distinct));
    return KernelCall([=, s = b.context().stream] {
      embedding_backward({.dy = dy, .tokens = tokens, .dweight = dweight}, s);
    });
  });
  cases.add("cross_entropy_partial", m.rows(m.V), 0, [=](Buffers& b) {
    const Tensor logits = b.reads(b.make({m.b, m.t, m.V})), targets = b.reads(b.make_tokens({m.b, m.t}, m.V));
    const Tensor maximum = b.writes(b.statistics({m.b, m.t}));
    const Tensor partial = b.writes(b.statistics({2, m.b, m.t}));
    return KernelCall([=, s = b.context().stream] {
      cross_entropy_partial({.logits = logits, .targets = targets, .maximum = maximum, .partial = partial},
                            s);
    });
  });
  cases.add("cross_entropy_rescale", fmt::format("{} x {}", m.b, m.t), 0, [=](Buffers& b) {
    const Tensor own = b.reads(b.statistics({m.b, m.t})), maximum = b.reads(b.statistics({m.b, m.t}, 1, 2));
    const Tensor partial = b.statistics({2, m.b, m.t});
    b.updates(partial.slice(0, 0, 1));
    return KernelCall([=, s = b.context().stream] {
      cross_entropy_rescale({.own = own, .maximum = maximum, .partial = partial}, s);
    });
  });
  cases.add("cross_entropy_loss", fmt::format("{} x {}", m.b, m.t), 0, [=](Buffers& b) {
    const Tensor maximum = b.reads(b.statistics({m.b, m.t})), loss = b.writes(b.statistics({m.b, m.t}));
    const Tensor partial = b.reads(b.statistics({2, m.b, m.t}, 1, 2)),
                 lse = b.writes(b.statistics({m.b, m.t}));
    return KernelCall([=, s = b.context().stream] {
      cross_entropy_loss({.maximum = maximum, .partial = partial, .loss = loss, .lse = lse}, s);
    });
  });
  cases.add("cross_entropy_backward", m.rows(m.V), 0, [=](Buffers& b) {
    const Tensor logits = b.reads(b.make({m.b, m.t, m.V})), targets = b.reads(b.make_tokens({m.b, m.t}, m.V));
    const Tensor lse = b.reads(b.statistics({m.b, m.t}, 10, 11)), dlogits = b.writes(b.make({m.b, m.t, m.V}));
    return KernelCall([=, s = b.context().stream] {
      cross_entropy_backward(
          {.logits = logits, .targets = targets, .lse = lse, .scale = 1e-3, .dlogits = dlogits}, s);
    });
  });
}

/// As many parameters as the embedding has.
void add_upkeep_cases(const ModelShapes& m, KernelCases& cases) {
  const std::int64_t parameters = m.V * m.d;
  const std::string many = fmt::format("{} parameters", parameters);
  cases.add("adamw", many, 0, [=](Buffers& b) {
    const Tensor weight = b.updates(b.statistics({parameters})), grad = b.reads(b.statistics({parameters}));
    const Tensor m = b.updates(b.statistics({parameters})), v = b.updates(b.statistics({parameters}, 0, 1));
    const bool rounds = b.context().dtype == DType::bf16;
    const Tensor rounded = rounds ? b.writes(b.make({parameters})) : Tensor();
    const Tensor norm = b.reads(b.make({1}, DType::f64, 1, 2));
    return KernelCall([=, s = b.context().stream] {
      adamw({.weight = weight,
             .grad = grad,
             .m = m,
             .v = v,
             .rounded = rounded,
             .squared_norm = norm,
             .lr = 1e-6,
             .weight_decay = 0.1},
            s);
    });
  });
  cases.add("sum_of_squares", many, 0, [=](Buffers& b) {
    const Tensor x = b.reads(b.statistics({parameters})), result = b.updates(b.make({1}, DType::f64));
    return KernelCall([=, s = b.context().stream] { sum({.x = x, .squares = true, .result = result}, s); });
  });
  cases.add("fill", many, 0, [=](Buffers& b) {
    const Tensor y = b.writes(b.statistics({parameters}));
    return KernelCall([=, s = b.context().stream] { fill({.value = 0, .y = y}, s); });
  });
  cases.add("copy", m.rows(m.d), 0, [=](Buffers& b) {
    const Tensor x = b.reads(b.make({m.b, m.t, m.d})), y = b.writes(b.make({m.b, m.t, m.d}));
    return KernelCall([=, s = b.context().stream] { copy({.x = x, .y = y}, s); });
  });
  cases.add("add", m.rows(m.d), 0, [=](Buffers& b) {
    const Tensor x = b.reads(b.make({m.b, m.t, m.d})), y = b.updates(b.make({m.b, m.t, m.d}));
    return KernelCall([=, s = b.context().stream] { add({.x = x, .y = y}, s); });
  });
}

}  // namespace transmamba
