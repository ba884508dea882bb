#include "core/cost_model.h"

#include <vector>

#include "core/transpoint.h"
#include "kernels/check.h"

namespace transmamba {
namespace {

constexpr auto kWhere = "cost_model";

void check_sizes(const ModelConfig& m) {
  check(m.vocab_size > 0, kWhere, "expected model.vocab_size above 0 (take the data file's), got {}",
        m.vocab_size);
  check(
      m.hidden_size > 0 && m.num_heads > 0 && m.qk_head_dim > 0 && m.v_head_dim > 0 && m.ffn_hidden_size > 0,
      kWhere, "expected sizes above 0 (after Config::resolve), got hidden {}, heads {} of {} and {}, ffn {}",
      m.hidden_size, m.num_heads, m.qk_head_dim, m.v_head_dim, m.ffn_hidden_size);
}

}  // namespace

ForwardFlops& ForwardFlops::operator+=(const ForwardFlops& other) {
  projections += other.projections;
  mlps += other.mlps;
  head += other.head;
  attention += other.attention;
  ssm += other.ssm;
  converter += other.converter;
  return *this;
}

ForwardFlops layer_flops(const ModelConfig& m, char kind, std::int64_t seq_len, std::int64_t transpoint) {
  // In double from the first product on: the square of a long sequence times a width passes 64 bits.
  const auto d = static_cast<double>(m.hidden_size), h = static_cast<double>(m.num_heads);
  const auto n = static_cast<double>(m.qk_head_dim), p = static_cast<double>(m.v_head_dim);
  const auto T = static_cast<double>(seq_len), P = static_cast<double>(transpoint);
  ForwardFlops flops;
  if (kind != 'T') {
    flops.mlps = 6 * T * d * static_cast<double>(m.ffn_hidden_size);
    return flops;
  }
  check(transpoint >= 0 && transpoint <= seq_len, kWhere, "expected a TransPoint from 0 to {}, got {}",
        seq_len, transpoint);
  flops.projections = 2 * T * d * h * (2 * n + 3 * p + 1);
  flops.attention = h * (n + p) * P * P;
  flops.ssm = 4 * h * n * p * (T - P);
  // Nobody reads the state of a mixer that only attends.
  if (m.memory_converter && transpoint < seq_len) flops.converter = 2 * h * n * p * P;
  return flops;
}

ForwardFlops forward_flops(const ModelConfig& model, std::int64_t seq_len) {
  check_sizes(model);
  const std::vector<std::int64_t> transpoints = resolve_transpoints(model, seq_len);
  ForwardFlops flops;
  std::size_t mixer = 0;
  for (std::int64_t layer = 0; layer < model.num_layers; ++layer) {
    const char kind = model.kind(layer);
    flops += layer_flops(model, kind, seq_len, kind == 'T' ? transpoints[mixer++] : 0);
  }
  flops.head = 2 * static_cast<double>(seq_len) * static_cast<double>(model.hidden_size) *
               static_cast<double>(model.vocab_size);
  return flops;
}

double training_flops(const ModelConfig& model, std::int64_t seq_len, std::int64_t sequences) {
  return 3 * static_cast<double>(sequences) * forward_flops(model, seq_len).total();
}

ParameterCounts parameter_counts(const ModelConfig& m) {
  check_sizes(m);
  const std::int64_t d = m.hidden_size, n = m.qk_head_dim, p = m.v_head_dim;
  const std::int64_t mixers = m.num_mixers();
  ParameterCounts counts;
  counts.embedding = m.vocab_size * d;
  counts.mixers = mixers * m.num_heads * (d * (2 * n + 3 * p + 1) + (m.conv_width + 1) * (2 * n + p) + p + 3);
  counts.mlps = (m.num_layers - mixers) * 3 * d * m.ffn_hidden_size;
  counts.norms = (m.num_layers + 1) * d;
  counts.head = m.tie_embeddings ? 0 : m.vocab_size * d;
  return counts;
}

std::int64_t parameter_count(const ModelConfig& model) { return parameter_counts(model).total(); }

}  // namespace transmamba
