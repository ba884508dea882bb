#include "launch/measure.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/transpoint.h"
#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/gemm.h"
#include "kernels/qkv_conv.h"
#include "kernels/rms_norm.h"
#include "kernels/ssd.h"
#include "kernels/swiglu.h"
#include "launch/noise.h"
#include "parallel/layers/aligned_rows.h"

namespace transmamba {
namespace {

constexpr std::int64_t kMostTokens = 2048;  // on a CPU larger sizes are on the same lines

class Bench {
 public:
  Bench(const Context& context, const Config& config, Communicator& world, double seconds,
        std::vector<FitCheck>& checks)
      : context_(context),
        stream_(context.stream),
        m_(config.model),
        world_(world),
        seconds_(seconds),
        checks_(checks) {
    if (m_.vocab_size == 0) m_.vocab_size = 256;
    // Kernels see a micro-batch at once; small sizes would stay in caches that a step's tensors do not fit
    // in.
    const bool on_gpu = stream_.device == Device::cuda;
    std::int64_t most = config.train.micro_batch * config.train.seq_len;
    if (!on_gpu) most = std::min(most, kMostTokens);
    // The second size is not fitted but predicted.
    const auto sizes = [](std::int64_t of, std::int64_t parts) {
      return Sizes{std::max<std::int64_t>(1, of / parts), std::max<std::int64_t>(1, of / 2), of};
    };
    tokens_ = sizes(most, on_gpu ? 16 : 8);
    // Attention sees no more than a prefix of each sequence.
    batch_ = on_gpu ? config.train.micro_batch : 1;
    const std::vector<std::int64_t> prefixes = resolve_transpoints(m_, config.train.seq_len);
    std::int64_t longest = prefixes.empty() ? 0 : *std::max_element(prefixes.begin(), prefixes.end());
    longest = std::max(longest, std::min<std::int64_t>(config.train.seq_len, 1024));  // more than a launch
    prefixes_ = sizes(std::min(longest, most / batch_), 8);
  }

  void run(Machine& machine) {
    products(machine);
    const std::int64_t h = m_.num_heads, p = m_.v_head_dim, d = m_.hidden_size;
    measure("attention", machine.attention, prefixes_, [&](std::int64_t t) { return attention_at(t); });
    measure("SSD scan", machine.scan, [&](std::int64_t t) { return scan_at(t); });
    measure("segment summary", machine.summary, [&](std::int64_t t) { return summary_at(t); });
    measure(
        "convolution", machine.qkv_conv, [&](std::int64_t t) { return qkv_conv_at(t, 0); }, &machine.rotation,
        [&](std::int64_t t) { return qkv_conv_at(t, t); });
    measure("norm", machine.norm, [&](std::int64_t t) { return norm_at(t, 1, d, false); });
    measure("gated norm", machine.gated_norm, [&](std::int64_t t) { return norm_at(t, h, p, true); });
    measure("SwiGLU", machine.swiglu, [&](std::int64_t t) { return swiglu_at(t); });
    measure("copy", machine.copy, [&](std::int64_t t) { return copy_at(t); });
    measure("embedding", machine.embedding, [&](std::int64_t t) { return embedding_at(t); });
    measure("cross entropy", machine.cross_entropy, [&](std::int64_t t) { return cross_entropy_at(t); });
    measure("AdamW", machine.adamw, [&](std::int64_t t) { return adamw_at(t); });
  }

 private:
  using Sizes = std::array<std::int64_t, 3>;
  /// A kernel at one size. Without a backward there is nothing to measure. `rotated`: units of RoPE, too.
  struct Point {
    double units = 0;
    std::function<void()> forward, backward;
    double rotated = 0;
  };
  using At = std::function<Point(std::int64_t)>;

  double time(const std::function<void()>& kernel) const {
    return time_in_turns(
        world_, {kernel}, [&] { synchronize(context_); }, seconds_)[0];
  }

  /// Fits `cost`; with `rotation` also what points of `rotated_at` cost beyond that.
  void measure(const char* name, OpCost& cost, const At& at, OpCost* rotation = nullptr,
               const At& rotated_at = nullptr) {
    measure(name, cost, tokens_, at, rotation, rotated_at);
  }
  void measure(const char* name, OpCost& cost, const Sizes& tokens, const At& at, OpCost* rotation = nullptr,
               const At& rotated_at = nullptr) {
    std::vector<std::vector<double>> rows, rows_back;
    std::vector<double> forward, backward;
    struct Try {
      FitCheck check;
      double units, rotated;
      bool back;
    };
    std::vector<Try> tries;
    for (std::size_t i = 0; i < tokens.size(); ++i)
      for (const At* kind : {&at, &rotated_at}) {
        if (!*kind) continue;
        const Point point = (*kind)(tokens[i]);
        for (const bool back : {false, true}) {
          const std::function<void()>& kernel = back ? point.backward : point.forward;
          if (!kernel) continue;
          const double seconds = time(kernel);
          if (i == 1) {
            const std::string what =
                fmt::format("{}{} {}, {} tokens", name, point.rotated > 0 ? " and RoPE" : "",
                            back ? "backward" : "forward", tokens[i]);
            tries.push_back({{what, seconds, 0}, point.units, point.rotated, back});
            continue;
          }
          std::vector<double> row{1, point.units};
          if (rotation) row.push_back(point.rotated);
          (back ? rows_back : rows).push_back(row);
          (back ? backward : forward).push_back(seconds);
        }
      }
    const std::vector<double> ahead = fit(rows, forward);
    const std::vector<double> behind =
        rows_back.empty() ? std::vector<double>(ahead.size(), 0.0) : fit(rows_back, backward);
    cost = {ahead[0], ahead[1], behind[1], behind[0]};
    if (rotation) *rotation = {0, ahead[2], behind[2]};
    for (Try& t : tries) {
      t.check.predicted =
          t.back ? cost.call_backward + cost.backward * t.units : cost.call + cost.forward * t.units;
      if (rotation) t.check.predicted += (t.back ? rotation->backward : rotation->forward) * t.rotated;
      checks_.push_back(t.check);
    }
  }

  /// The products of a layer, forward and backward, and of the head.
  void products(Machine& machine) {
    const std::int64_t d = m_.hidden_size, hp = m_.num_heads * m_.v_head_dim, f = m_.ffn_hidden_size;
    const std::int64_t joint = m_.num_heads * (2 * m_.qk_head_dim + 2 * m_.v_head_dim + 1);
    const bool in_waves = stream_.device == Device::cuda && context_.dtype == DType::bf16;
    machine.gemm_wave = in_waves ? Machine::builtin_h200().gemm_wave : 0;  // a Hopper GPU's
    using Product = std::array<std::int64_t, 2>;                           // out, in
    const auto bytes = static_cast<double>(size_of(context_.dtype));
    std::vector<std::vector<double>> rows, sizes;
    std::vector<double> seconds;
    std::vector<FitCheck> checks;
    for (const auto [out, in] :
         {Product{joint, d}, Product{d, hp}, Product{2 * f, d}, Product{d, f}, Product{m_.vocab_size, d}})
      for (std::size_t i = 0; i < tokens_.size(); ++i) {
        const std::int64_t t = tokens_[i];
        const Tensor x = tensor({t, in}), y = aligned_rows(context_, {t, out}), weight = tensor({out, in}),
                     dweight = tensor_s({out, in});
        const double forward =
            time([&] { gemm({.a = x, .b = weight, .transpose_b = true, .c = y}, stream_); });
        const double to_input = time([&] { gemm({.a = y, .b = weight, .c = x}, stream_); });
        const double to_weight =
            time([&] { gemm({.a = y, .transpose_a = true, .b = x, .c = dweight, .beta = 1}, stream_); });
        const auto M = static_cast<double>(t), N = static_cast<double>(out), K = static_cast<double>(in);
        using Call = std::array<double, 4>;
        for (const auto& [measured, m, n, k] :
             {Call{forward, M, N, K}, {to_input, M, K, N}, {to_weight, N, K, M}})
          if (i != 1)
            rows.push_back({1, machine.gemm_work(m, n, k), bytes * (M * K + K * N + M * N)}),
                seconds.push_back(measured);
        if (i == 1) {
          checks.push_back({fmt::format("products {} x {}, {} tokens, mean of 3", out, in, t),
                            (forward + to_input + to_weight) / 3, 0});
          sizes.push_back({M, N, K});
        }
      }
    const std::vector<double> found = fit(rows, seconds);
    machine.gemm_call = found[0], machine.gemm_flop = found[1], machine.gemm_byte = found[2];
    for (std::size_t i = 0; i < checks.size(); ++i) {
      const double m = sizes[i][0], n = sizes[i][1], k = sizes[i][2];
      checks[i].predicted = (machine.gemm(m, n, k) + machine.gemm(m, k, n) + machine.gemm(n, k, m)) / 3;
      checks_.push_back(checks[i]);
    }
  }

  Tensor tensor(const Shape& shape) const { return noise(context_, shape, context_.dtype); }
  /// Of type S.
  Tensor tensor_s(const Shape& shape) const { return noise(context_, shape, context_.statistics()); }
  Tensor tensor_s(const Shape& shape, double value) const {
    return filled(shape, context_.statistics(), value);
  }
  Tensor filled(const Shape& shape, DType dtype, double value) const {
    const Tensor x = context_.empty(shape, dtype);
    fill({.value = value, .y = x}, stream_);
    return x;
  }
  Tensor ids(std::int64_t t) const {
    const Tensor x = context_.empty_host({1, t}, DType::i32);
    for (std::int64_t i = 0; i < t; ++i)
      x.ptr<std::int32_t>()[i] = static_cast<std::int32_t>(i * 7919 % m_.vocab_size);
    return to_device(context_, x);
  }
  double head_units(std::int64_t t, std::int64_t width) const {
    return static_cast<double>(t) * static_cast<double>(m_.num_heads) * static_cast<double>(width);
  }

  Point attention_at(std::int64_t t) const {
    const Shape qk{batch_, t, m_.num_heads, m_.qk_head_dim}, pv{batch_, t, m_.num_heads, m_.v_head_dim};
    const Tensor q = tensor(qk), k = tensor(qk), v = tensor(pv), o = tensor(pv), dout = tensor(pv);
    const Tensor lse = tensor_s({batch_, m_.num_heads, t}), dq = tensor(qk), dk = tensor(qk), dv = tensor(pv);
    return {head_units(batch_ * t, m_.qk_head_dim + m_.v_head_dim) * static_cast<double>(t + 1) / 2,
            [=, this] { attention({.q = q, .k = k, .v = v, .o = o, .lse = lse}, stream_); },
            [=, this] {
              attention_backward(
                  {.dout = dout, .q = q, .k = k, .v = v, .o = o, .lse = lse, .dq = dq, .dk = dk, .dv = dv},
                  stream_);
            }};
  }

  Point scan_at(std::int64_t t) const {
    const std::int64_t h = m_.num_heads, n = m_.qk_head_dim, p = m_.v_head_dim;
    const Shape qk{1, t, h, n}, pv{1, t, h, p};
    const Tensor q = tensor(qk), k = tensor(qk), v = tensor(pv), y = tensor(pv),
                 dt = tensor_s({1, t, h}, 0.01);
    const Tensor a_log = tensor_s({h}), d_skip = tensor_s({h}), state = tensor_s({1, h, n, p});
    const Tensor dq = tensor(qk), dk = tensor(qk), dv = tensor(pv), ddt = tensor_s({1, t, h}),
                 da = tensor_s({h}), dd = tensor_s({h}), dstate = tensor_s({1, h, n, p});
    return {
        head_units(t, n * p),
        [=, this] {
          ssd_scan(
              {.q = q, .k = k, .v = v, .dt = dt, .a_log = a_log, .d_skip = d_skip, .state_in = state, .y = y},
              stream_);
        },
        [=, this] {
          ssd_scan_backward({.dy = y,
                             .q = q,
                             .k = k,
                             .v = v,
                             .dt = dt,
                             .a_log = a_log,
                             .d_skip = d_skip,
                             .state_in = state,
                             .dq = dq,
                             .dk = dk,
                             .dv = dv,
                             .ddt = ddt,
                             .da_log = da,
                             .dd_skip = dd,
                             .dstate_in = dstate},
                            stream_);
        }};
  }

  Point summary_at(std::int64_t t) const {
    const std::int64_t h = m_.num_heads, n = m_.qk_head_dim, p = m_.v_head_dim;
    const Shape qk{1, t, h, n}, pv{1, t, h, p};
    const Tensor k = tensor(qk), v = tensor(pv), dt = tensor_s({1, t, h}, 0.01), a_log = tensor_s({h});
    const Tensor state = tensor_s({1, h, n, p}), decay = tensor_s({1, h});
    const Tensor dk = tensor(qk), dv = tensor(pv), ddt = tensor_s({1, t, h}), da = tensor_s({h});
    return {head_units(t, n * p),
            [=, this] {
              ssd_summary({.k = k, .v = v, .dt = dt, .a_log = a_log, .state_out = state, .log_decay = decay},
                          stream_);
            },
            [=, this] {  // adds to its outputs, which stay small next to float32's largest number
              ssd_summary_backward({.dstate_out = state,
                                    .dlog_decay = decay,
                                    .k = k,
                                    .v = v,
                                    .dt = dt,
                                    .a_log = a_log,
                                    .dk = dk,
                                    .dv = dv,
                                    .ddt = ddt,
                                    .da_log = da},
                                   stream_);
            }};
  }

  /// The first `rotated` tokens attend, and a state is made of their keys too.
  Point qkv_conv_at(std::int64_t t, std::int64_t rotated) const {
    const std::int64_t w = m_.conv_width, h = m_.num_heads, n = m_.qk_head_dim,
                       c = h * (2 * n + m_.v_head_dim);
    const Tensor x = tensor({1, t, c}), y = tensor({1, t, c}), dx = tensor({1, t, c}),
                 weight = tensor_s({c, w}), bias = tensor_s({c}), dweight = tensor_s({c, w}),
                 dbias = tensor_s({c}), keys = rotated > 0 ? tensor({1, rotated, h, n}) : Tensor();
    return {static_cast<double>(t * c) * static_cast<double>(w) / 4,
            [=, this] {
              qkv_conv({.x = x,
                        .weight = weight,
                        .bias = bias,
                        .y = y,
                        .k_rotated = keys,
                        .heads = h,
                        .qk_width = n,
                        .rotated = rotated,
                        .theta = m_.rope_theta},
                       stream_);
            },
            [=, this] {
              qkv_conv_backward({.dy = y,
                                 .dk_rotated = keys,
                                 .x = x,
                                 .weight = weight,
                                 .bias = bias,
                                 .dx = dx,
                                 .dweight = dweight,
                                 .dbias = dbias,
                                 .heads = h,
                                 .qk_width = n,
                                 .rotated = rotated,
                                 .theta = m_.rope_theta},
                                stream_);
            },
            head_units(rotated, 2 * n)};
  }

  /// The norm before a layer (one group of d), or the mixer's gated output norm (h groups of p).
  Point norm_at(std::int64_t t, std::int64_t g, std::int64_t d, bool gated) const {
    const Shape shape{1, t, g, d};
    const Tensor x = tensor(shape), y = tensor(shape), dx = tensor(shape), weight = tensor_s({g, d}),
                 dweight = tensor_s({g, d});
    const Tensor gate = gated ? tensor(shape) : Tensor(), dgate = gated ? tensor(shape) : Tensor();
    return {
        static_cast<double>(t * g * d),
        [=, this] { rms_norm({.x = x, .gate = gate, .weight = weight, .y = y}, stream_); },
        [=, this] {
          rms_norm_backward(
              {.dy = y, .x = x, .gate = gate, .weight = weight, .dx = dx, .dgate = dgate, .dweight = dweight},
              stream_);
        }};
  }

  Point swiglu_at(std::int64_t t) const {
    const std::int64_t f = m_.ffn_hidden_size;
    const Tensor packed = tensor({1, t, 2 * f}), dpacked = tensor({1, t, 2 * f}), y = tensor({1, t, f});
    return {static_cast<double>(t * f), [=, this] { swiglu({.gate_up = packed, .y = y}, stream_); },
            [=, this] { swiglu_backward({.dy = y, .gate_up = packed, .dgate_up = dpacked}, stream_); }};
  }

  Point copy_at(std::int64_t t) const {
    const Tensor x = tensor({t, m_.hidden_size}), y = tensor({t, m_.hidden_size});
    return {static_cast<double>(x.numel()), [=, this] { copy({.x = x, .y = y}, stream_); }, nullptr};
  }

  Point embedding_at(std::int64_t t) const {
    const Tensor tokens = ids(t), weight = tensor({m_.vocab_size, m_.hidden_size}),
                 dweight = tensor_s({m_.vocab_size, m_.hidden_size}), y = tensor({1, t, m_.hidden_size});
    return {static_cast<double>(t * m_.hidden_size),
            [=, this] { embedding({.tokens = tokens, .weight = weight, .y = y}, stream_); },
            [=, this] { embedding_backward({.dy = y, .tokens = tokens, .dweight = dweight}, stream_); }};
  }

  Point cross_entropy_at(std::int64_t t) const {
    const Tensor logits = aligned_rows(context_, {1, t, m_.vocab_size}),
                 dlogits = aligned_rows(context_, {1, t, m_.vocab_size}), targets = ids(t),
                 loss = tensor_s({1, t}), lse = tensor_s({1, t}), partial = tensor_s({2, 1, t});
    fill({.value = 0.1, .y = logits}, stream_);
    return {static_cast<double>(t * m_.vocab_size),
            [=, this] {
              cross_entropy_partial(
                  {.logits = logits, .targets = targets, .maximum = lse, .partial = partial}, stream_);
              cross_entropy_loss({.maximum = lse, .partial = partial, .loss = loss, .lse = lse}, stream_);
            },
            [=, this] {
              cross_entropy_backward({.logits = logits, .targets = targets, .lse = lse, .dlogits = dlogits},
                                     stream_);
            }};
  }

  Point adamw_at(std::int64_t t) const {
    const std::int64_t count = t * m_.hidden_size;
    const Tensor weight = tensor_s({count}), grad = tensor_s({count}), m = tensor_s({count}),
                 v = tensor_s({count}, 0.1),
                 rounded = context_.dtype == DType::bf16 ? tensor({count}) : Tensor();
    return {static_cast<double>(count),
            [=, this] {
              adamw({.weight = weight, .grad = grad, .m = m, .v = v, .rounded = rounded, .lr = 1e-6},
                    stream_);
            },
            nullptr};
  }

  const Context& context_;
  const Stream& stream_;
  ModelConfig m_;
  Communicator& world_;
  double seconds_;
  std::vector<FitCheck>& checks_;
  Sizes tokens_{}, prefixes_{};
  std::int64_t batch_ = 1;  // sequences that attention sees at once
};

}  // namespace

Machine measure_machine(const Context& context, const Config& config, Communicator& world, double seconds,
                        std::vector<FitCheck>& checks) {
  Machine machine = Machine::of({}, config.train.device);
  machine.dtype = config.train.dtype;
  Bench(context, config, world, seconds, checks).run(machine);
  return machine;
}

}  // namespace transmamba
