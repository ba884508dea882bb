// What kernels take beside their arguments while they run, on a GPU in bfloat16: the formulas that the CUDA
// kernels themselves count by, so that a plan can count too. Where it comes from is said by Stream::scratch.
//
// Not here are those that are small beside these or beside the kernels' arguments: qkv_conv_backward's 5
// float32 a channel and run of tokens, of which there are at most 256 and one a sequence; rms_norm_backward's
// d float32 a group and run, at most 396; step_size_backward's h float64 a run, at most 256;
// embedding_backward's 16 bytes a token and d / 64 more. Nor are the plain float32 and float64 kernels,
// which are there to check the others and take more.
#pragma once

#include <cstdint>

namespace transmamba::workspace {

constexpr int kProcessors = 132;  ///< multiprocessors of an H200, where a plan does not know better

/// Of every matrix product, bytes. Trials of a product's algorithms, in the first calls of each kind, take
/// two results more, from the driver and not from Stream::scratch, and where there is room only.
constexpr std::int64_t kGemm = 32 << 20;

/// How the SSD cuts its work: each head's sequence in pieces, and those in chunks of kTokens. Piece i has
/// chunks [i per_piece, (i + 1) per_piece).
struct SsdCut {
  static constexpr int kTokens = 64;
  static constexpr int kBlocksPerProcessor = 2;  ///< a piece each, that run at a time
  std::int64_t b, t, h, chunks;
  int pieces, per_piece;
  SsdCut(std::int64_t b, std::int64_t t, std::int64_t h, int processors);
};
// Elements of float32, for states (n, p).
std::int64_t ssd_summary(const SsdCut& cut, std::int64_t n, std::int64_t p);
std::int64_t ssd_summary_backward(const SsdCut& cut);
constexpr std::int64_t kSummaryTokens = 1024;    ///< that a block of its last kernel has
std::int64_t summary_groups(const SsdCut& cut);  ///< how many blocks that are, a head; at least one
/// Twice this where state_out is state_in.
std::int64_t ssd_scan(const SsdCut& cut, std::int64_t n, std::int64_t p);
std::int64_t ssd_scan_backward(const SsdCut& cut, std::int64_t n, std::int64_t p);

/// How many sequences, and heads of each, attention's backward pass takes at a time.
struct AttentionPiece {
  std::int64_t sequences, heads;
};
AttentionPiece attention_backward_piece(std::int64_t b, std::int64_t h, std::int64_t tq, std::int64_t tk,
                                        bool deterministic);
/// Bytes of attention's backward pass where it overwrites its gradients (kernels/attention.h says what it
/// takes to add to them, and forward), as cuDNN 9.19 asks for them on a Hopper GPU: a float32 a query and
/// head, and, of each head of a piece, where the order of additions is fixed 2 bytes a score (queries and
/// keys in blocks of 64 and 128), or else dq in float32. cuDNN itself is asked when a call is made; another
/// version may want more.
std::int64_t attention_backward(std::int64_t b, std::int64_t h, std::int64_t tq, std::int64_t tk,
                                std::int64_t n, bool deterministic);

}  // namespace transmamba::workspace
