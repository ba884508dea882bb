#include "kernels/embedding.h"

namespace transmamba {
namespace {

/// Checks tokens (b, t), table (V, d) and rows (b, t, d).
void check_lookup(const ConstView& tokens, const ConstView& table, const ConstView& rows, std::string_view op,
                  std::string_view table_name, std::string_view rows_name) {
  expect_rank(tokens, "(b, t)", op, "tokens");
  expect_rank(table, "(V, d)", op, table_name);
  expect(tokens, tokens.shape(), DType::i32, op, "tokens");
  expect(table, table.shape(), table.dtype(), op, table_name);
  expect(rows, {tokens.dim(0), tokens.dim(1), table.dim(1)}, table.dtype(), op, rows_name);
}

}  // namespace

void embedding(const Embedding& a, const Stream& stream) {
  check_lookup(a.tokens, a.weight, a.y, "embedding", "weight", "y");
  run_on(stream, cpu::embedding, cuda::embedding, a);
}

void embedding_backward(const EmbeddingBackward& a, const Stream& stream) {
  check_lookup(a.tokens, a.dweight, a.dy, "embedding_backward", "dweight", "dy");
  run_on(stream, cpu::embedding_backward, cuda::embedding_backward, a);
}

}  // namespace transmamba
