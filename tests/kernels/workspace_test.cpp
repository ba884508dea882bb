// How the CUDA kernels cut their work, and what that takes: formulas, which need no GPU.
#include "kernels/workspace.h"

#include <gtest/gtest.h>

namespace transmamba::workspace {
namespace {

TEST(Workspace, AttentionsBackwardPassTakesSomeHeadsAtATime) {
  const auto expect = [](std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t sequences,
                         std::int64_t heads) {
    const AttentionPiece piece = attention_backward_piece(b, h, t, t, true);
    EXPECT_EQ(piece.sequences, sequences) << b << " " << h << " " << t;
    EXPECT_EQ(piece.heads, heads) << b << " " << h << " " << t;
  };
  expect(2, 16, 8192, 1, 8);
  expect(2, 16, 1024, 2, 16);
  expect(2, 6, 8192, 1, 6);
  expect(1, 10, 8192, 1, 5);   // a divisor
  expect(1, 16, 65536, 1, 1);  // at least one
  EXPECT_EQ(attention_backward_piece(2, 16, 8192, 8192, false).heads, 16);
}

TEST(Workspace, AttentionsBackwardPassKeepsScoresWhereOrderIsFixed) {
  EXPECT_EQ(attention_backward(2, 16, 8192, 8192, 96, true), 8 * (2 * 8192LL * 8192 + 4 * 8192));
  EXPECT_EQ(attention_backward(2, 16, 8192, 8192, 96, false), 2 * 16 * 8192LL * 4 * (96 + 1));
  EXPECT_EQ(attention_backward(1, 1, 1, 129, 64, true), 2 * 64 * 256 + 4);
  EXPECT_EQ(attention_backward(2, 16, 0, 0, 96, true), 0);
}

TEST(Workspace, TheSsdCutsASequenceToFillTheGpu) {
  const SsdCut cut(2, 8192, 16, 132);
  EXPECT_EQ(cut.chunks, 128);
  EXPECT_EQ(cut.pieces, 8);
  EXPECT_EQ(cut.per_piece, 16);
  EXPECT_EQ(ssd_scan(cut, 96, 64), 32 * 8 * (96 * 64 + 1));
  EXPECT_EQ(ssd_scan_backward(cut, 96, 64), 32 * (8 * (3 * 96 * 64 + 4) + 128 * 129));
  EXPECT_EQ(ssd_summary_backward(cut), 32 * (128 * 67 + 8 + 1));
  const SsdCut whole(64, 100, 16, 132);  // more heads than the GPU runs at a time
  EXPECT_EQ(whole.pieces, 1);
  EXPECT_EQ(whole.per_piece, 2);
  EXPECT_EQ(ssd_scan(whole, 64, 64), 0);
  const SsdCut nothing(2, 0, 16, 132);
  EXPECT_EQ(nothing.pieces, 0);
  EXPECT_EQ(ssd_scan_backward(nothing, 64, 64), 0);
}

}  // namespace
}  // namespace transmamba::workspace
