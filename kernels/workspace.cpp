#include "kernels/workspace.h"

#include <algorithm>

namespace transmamba::workspace {
namespace {

// Attention's backward pass, at a time: scores (of 2 bytes), and heads times keys, which are some 4 blocks
// for each of an H200's processors. More is slower, as scores leave its cache: 8192 tokens of 32 heads
// take 4.8 ms by 8 heads at a time, 5.1 by 4 and 6.9 by all 32. Where order did not matter, and nothing were
// stored, it would be 2.7.
constexpr std::int64_t kMostScores = std::int64_t{1} << 29, kMostKeys = 1 << 16;

std::int64_t round_up(std::int64_t x, std::int64_t to) { return (x + to - 1) / to * to; }

}  // namespace

SsdCut::SsdCut(std::int64_t b_, std::int64_t t_, std::int64_t h_, int processors) : b(b_), t(t_), h(h_) {
  chunks = (t + kTokens - 1) / kTokens;
  const std::int64_t heads = std::max<std::int64_t>(1, b * h), most = std::max<std::int64_t>(1, chunks);
  const std::int64_t wanted = std::clamp<std::int64_t>(kBlocksPerProcessor * processors / heads, 1, most);
  per_piece = static_cast<int>((chunks + wanted - 1) / wanted);
  pieces = per_piece == 0 ? 0 : static_cast<int>((chunks + per_piece - 1) / per_piece);
}

// A piece's summary is a state and its decay.
std::int64_t ssd_summary(const SsdCut& cut, std::int64_t n, std::int64_t p) {
  return cut.b * cut.h * cut.pieces * (n * p + 1);
}
std::int64_t ssd_scan(const SsdCut& cut, std::int64_t n, std::int64_t p) {
  return cut.pieces > 1 ? ssd_summary(cut, n, p) : 0;
}

std::int64_t summary_groups(const SsdCut& cut) {
  return std::max<std::int64_t>(1, (cut.chunks * SsdCut::kTokens + kSummaryTokens - 1) / kSummaryTokens);
}

// A number a token, three a chunk, one a block and one a head.
std::int64_t ssd_summary_backward(const SsdCut& cut) {
  return cut.b * cut.h * (cut.chunks * (SsdCut::kTokens + 3) + summary_groups(cut) + 1);
}

// Three states and four numbers a piece, two numbers a token, one a chunk.
std::int64_t ssd_scan_backward(const SsdCut& cut, std::int64_t n, std::int64_t p) {
  return cut.b * cut.h * (cut.pieces * (3 * n * p + 4) + cut.chunks * (2 * SsdCut::kTokens + 1));
}

AttentionPiece attention_backward_piece(std::int64_t b, std::int64_t h, std::int64_t tq, std::int64_t tk,
                                        bool deterministic) {
  const auto fits = [&](std::int64_t all_heads) {
    return all_heads * tk <= kMostKeys && all_heads * tk * tq <= kMostScores;
  };
  if (!deterministic || fits(b * h)) return {b, h};
  std::int64_t heads = h;
  while (heads > 1 && (h % heads != 0 || !fits(heads))) --heads;
  return {1, heads};
}

std::int64_t attention_backward(std::int64_t b, std::int64_t h, std::int64_t tq, std::int64_t tk,
                                std::int64_t n, bool deterministic) {
  if (tq == 0 || tk == 0) return 0;
  const AttentionPiece piece = attention_backward_piece(b, h, tq, tk, deterministic);
  const std::int64_t scores = 2 * round_up(tq, 64) * round_up(tk, 128), dq = 4 * tq * n;
  return piece.sequences * piece.heads * (4 * tq + (deterministic ? scores : dq));
}

}  // namespace transmamba::workspace
