#include "kernels/embedding.h"

#include "kernels/vocabulary.h"

namespace transmamba {
namespace {

/// Checks tokens (b, t), table (V, d) and rows (b, t, d).
void check_lookup(const ConstView& tokens, const ConstView& table, const ConstView& rows, std::string_view op,
                  std::string_view table_name, std::string_view rows_name) {
  expect_rank(tokens, "(b, t)", op, "tokens");
  expect_rank(table, "(V, d)", op, table_name);
  expect(tokens, tokens.shape(), DType::i32, op, "tokens");
  expect(table, table.shape(), table.dtype(), op, table_name);
  expect(rows, {tokens.dim(0), tokens.dim(1), table.dim(1)}, rows.dtype(), op, rows_name);
}

}  // namespace

void embedding(const Embedding& a, const Stream& stream) {
  constexpr auto op = "embedding";
  check_lookup(a.tokens, a.weight, a.y, op, "weight", "y");
  expect(a.weight, a.weight.shape(), a.y.dtype(), op, "weight");
  Embedding shard = a;  // backends are told the size of the whole vocabulary
  shard.vocab_size = whole_vocabulary(a.vocab_begin, a.weight.dim(0), a.vocab_size, op);
  run_on(stream, cpu::embedding, cuda::embedding, shard);
}

void embedding_backward(const EmbeddingBackward& a, const Stream& stream) {
  constexpr auto op = "embedding_backward";
  check_lookup(a.tokens, a.dweight, a.dy, op, "dweight", "dy");
  expect(a.dweight, a.dweight.shape(), statistics_of(a.dy.dtype()), op, "dweight");
  EmbeddingBackward shard = a;
  shard.vocab_size = whole_vocabulary(a.vocab_begin, a.dweight.dim(0), a.vocab_size, op);
  run_on(stream, cpu::embedding_backward, cuda::embedding_backward, shard);
}

}  // namespace transmamba
