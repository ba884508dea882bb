#include "core/step_cost.h"

#include <algorithm>

#include "kernels/check.h"

namespace transmamba {
namespace {

double real(std::int64_t x) { return static_cast<double>(x); }

Seconds op(const OpCost& cost, double units) {
  return {cost.call + cost.forward * units, cost.call_backward + cost.backward * units};
}

/// y = x W^T on `tokens` rows, and in backward the products for dx and dW.
Seconds linear(const Machine& machine, double tokens, double out, double in) {
  return {machine.gemm(tokens, out, in), machine.gemm(tokens, in, out) + machine.gemm(out, in, tokens)};
}

/// `seconds` and `passes`, where a backward pass computes the passes over memory again, or with
/// Recompute::full also what is `in` the seconds already.
Seconds with_recompute(Seconds seconds, const Seconds& in, const Seconds& passes, Recompute again) {
  seconds += passes;
  if (again != Recompute::none) seconds.backward += passes.forward;
  if (again == Recompute::full) seconds.backward += in.forward;
  return seconds;
}

}  // namespace

Seconds mixing_seconds(const ModelConfig& m, const Machine& machine, std::int64_t transpoint,
                       std::int64_t seq_len, std::int64_t begin, std::int64_t end, std::int64_t tp,
                       Sharing sharing, Recompute again) {
  const std::int64_t cut = std::clamp(transpoint, begin, end);
  const double heads = real(m.num_heads) / real(tp), n = real(m.qk_head_dim), p = real(m.v_head_dim);
  Seconds seconds;
  if (cut > begin) {
    const double before = real(cut - begin), pairs = before * (real(begin + 1) + real(cut)) / 2;
    seconds += op(machine.attention, pairs * heads * (n + p));
    if (begin > 0) seconds += {machine.attention.call, machine.attention.call_backward};
    const Seconds rotation = op(machine.rotation, before * heads * 2 * n);
    seconds += rotation;
    if (again == Recompute::selective) seconds.backward += rotation.forward;
    if (m.memory_converter && transpoint < seq_len) seconds += op(machine.summary, before * heads * n * p);
  }
  if (cut < end) {
    const double after = real(end - cut);
    seconds += op(machine.scan, after * heads * n * p);
    // Later segments wait for this one's summary, earlier ones in the backward pass for its entry gradient,
    // which costs the same.
    const double summary = op(machine.summary, after * heads * n * p).forward;
    const bool is_only = sharing == Sharing::one_segment;
    const bool scans_at_once = is_only && begin == 0;
    const bool scans_at_once_backward = is_only && end == seq_len && cut == begin;
    if (sharing != Sharing::none)
      seconds +=
          {end < seq_len && !scans_at_once ? summary : 0, begin > 0 && !scans_at_once_backward ? summary : 0};
  }
  if (again == Recompute::full) seconds.backward += seconds.forward;
  return seconds;
}

Seconds mixer_rest_seconds(const ModelConfig& m, const Machine& machine, double tokens, std::int64_t tp,
                           Recompute again) {
  const double d = real(m.hidden_size), h = real(m.num_heads) / real(tp), n = real(m.qk_head_dim),
               p = real(m.v_head_dim), mine = tokens / real(tp);
  const Seconds in = linear(machine, tokens, h * (2 * n + 2 * p + 1), d);
  Seconds passes = op(machine.norm, mine * d);
  passes += op(machine.qkv_conv, tokens * h * (2 * n + p) * real(m.conv_width) / 4);
  passes += op(machine.gated_norm, tokens * h * p);
  Seconds seconds = in;
  seconds += linear(machine, tokens, d, h * p);
  seconds += op(machine.copy, mine * d);
  return with_recompute(seconds, in, passes, again);
}

Seconds mlp_seconds(const ModelConfig& m, const Machine& machine, double tokens, std::int64_t tp,
                    Recompute again) {
  const double d = real(m.hidden_size), f = real(m.ffn_hidden_size) / real(tp), mine = tokens / real(tp);
  const Seconds in = linear(machine, tokens, 2 * f, d);
  Seconds passes = op(machine.norm, mine * d);
  passes += op(machine.swiglu, tokens * f);
  Seconds seconds = in;
  seconds += linear(machine, tokens, d, f);
  seconds += op(machine.copy, mine * d);
  return with_recompute(seconds, in, passes, again);
}

Seconds embedding_seconds(const ModelConfig& m, const Machine& machine, double tokens, std::int64_t tp) {
  return op(machine.embedding, tokens * real(m.hidden_size) / real(tp));
}

Seconds head_seconds(const ModelConfig& m, const Machine& machine, double tokens, std::int64_t tp,
                     Recompute again) {
  const double vocabulary = real(m.vocab_size) / real(tp), d = real(m.hidden_size);
  Seconds seconds = linear(machine, tokens, vocabulary, d);
  seconds += op(machine.cross_entropy, tokens * vocabulary);
  return with_recompute(seconds, {}, op(machine.norm, tokens / real(tp) * d), again);
}

std::vector<double> token_costs(const ModelConfig& m, std::span<const std::int64_t> transpoints,
                                const Machine& machine, std::int64_t seq_len, bool shared) {
  check(seq_len > 0, "step_cost", "expected a sequence length above 0, got {}", seq_len);
  const double heads = real(m.num_heads), n = real(m.qk_head_dim), p = real(m.v_head_dim),
               tokens = real(seq_len);
  const auto both = [](const OpCost& cost, double units) { return (cost.forward + cost.backward) * units; };
  const double pair = both(machine.attention, heads * (n + p)),
               rotation = both(machine.rotation, heads * 2 * n);
  const double summary = both(machine.summary, heads * n * p);
  const double scan =
      both(machine.scan, heads * n * p) + (shared ? 2 * machine.summary.forward * heads * n * p : 0);

  Seconds rest =
      mixer_rest_seconds(m, machine, tokens, 1) * real(static_cast<std::int64_t>(transpoints.size()));
  rest += mlp_seconds(m, machine, tokens, 1) * real(m.num_layers - m.num_mixers());
  rest += embedding_seconds(m, machine, tokens, 1);
  rest += head_seconds(m, machine, tokens, 1);

  // How many mixers still attend at each position, and how many of those convert: they change at the
  // TransPoints.
  std::vector<double> attend(static_cast<std::size_t>(seq_len) + 1, 0.0), convert = attend;
  for (const std::int64_t transpoint : transpoints) {
    const auto end = static_cast<std::size_t>(std::min(transpoint, seq_len));
    attend[0] += 1, attend[end] -= 1;
    if (m.memory_converter && transpoint < seq_len) convert[0] += 1, convert[end] -= 1;
  }
  std::vector<double> cost(static_cast<std::size_t>(seq_len));
  double attending = 0, converting = 0;
  const double mixers = real(static_cast<std::int64_t>(transpoints.size()));
  for (std::size_t i = 0; i < cost.size(); ++i) {
    attending += attend[i], converting += convert[i];
    cost[i] = rest.total() / tokens + attending * (pair * static_cast<double>(i + 1) + rotation) +
              converting * summary + (mixers - attending) * scan;
  }
  return cost;
}

}  // namespace transmamba
