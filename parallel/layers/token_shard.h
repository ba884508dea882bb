// Megatron's sequence parallelism: between the layers' matrix products, each tp rank holds a run of the
// tokens.
//
// Tokens travel a rank's run at a time, to every other rank by itself (as the ring of Wang et al., 2023,
// "Overlap Communication with Dependent Computation via Decomposition", but with no hops: all ranks of tp are
// near each other), so that products of the runs that are here, or not yet needed there, go on meanwhile.
#pragma once

#include <vector>

#include "core/tensor.h"
#include "parallel/comm/communicator.h"

namespace transmamba {

/// What the transfers of layers over `tokens` tokens of width d on a rank have in the group's window
/// (Communicator::open_window) at once, bytes: all tokens, and the addends of this rank's.
std::int64_t token_window_bytes(const Communicator& tp, std::int64_t tokens, std::int64_t d, DType dtype);

/// Tokens [begin, end): a rank's run.
struct TokenRun {
  std::int64_t begin, end;
  bool is_mine;
  int spare;  ///< for those of other runs that are on their way meanwhile
};

/// `tokens` = b t rows, cut in runs of `rows` = ceil(tokens / tp): rank i has [i rows, (i + 1) rows). Where
/// tp does not divide `tokens` the last runs are shorter, or empty, and the rows that they lack in a tensor
/// of (rows, d) are undefined.
struct TokenShard {
  TokenShard(Communicator& tp, std::int64_t tokens);
  std::int64_t tokens, rows;
  std::int64_t mine;  ///< rows of this rank that are tokens
  /// Multiprocessors of a GPU that a transfer wants (Gemm::spare): a product that took all would have it wait
  /// for its own end.
  int spare;
  /// Of the rank `step` after this one, or before it; |step| < tp. `moves`: others are on their way.
  TokenRun run_of(int step, bool moves = false) const;

 private:
  int rank_, ranks_;
};

/// All the tokens (tokens, d) from each rank's (rows, d), which must stay until finish(). With one rank, the
/// shard itself.
class GatherTokens {
 public:
  GatherTokens(const Context& context, Communicator& tp, std::string_view purpose, const Tensor& shard,
               std::int64_t tokens);
  /// use(run, rows): each run as it comes, this rank's first. Runs without tokens are left out.
  template <class F>
  void each(F&& use) {
    for (int step = 0; step < tp_.size(); ++step)
      if (const View rows = arrived(step); rows.numel() > 0)
        use(shape_.run_of(-step, /*moves=*/step + 1 < tp_.size()), rows);
  }
  Tensor finish();

 private:
  View arrived(int step);
  const Context& context_;
  Communicator& tp_;
  TokenShard shape_;
  Tensor shard_, all_;
  std::vector<Pending> pending_;  // by step
};

/// Its conjugate: the sum over ranks of this rank's run.
class ScatterTokens {
 public:
  /// `mine` (rows, d) is the result.
  ScatterTokens(const Context& context, Communicator& tp, std::int64_t tokens, View mine);
  /// make(run, rows) writes this rank's addend of each run: those of others first, which are on their way
  /// while the next is made, and its own in `mine`.
  template <class F>
  void each(std::string_view purpose, F&& make) {
    for (int step = 1; step <= tp_.size(); ++step) {
      if (const View rows = addend(step); rows.numel() > 0)
        make(shape_.run_of(step % tp_.size(), /*moves=*/step > 1), rows);
      if (step < tp_.size()) start(purpose, step);
    }
  }
  /// Adds the others' to `mine`.
  void finish();

 private:
  View addend(int step) const;
  void start(std::string_view purpose, int step);
  const Context& context_;
  Communicator& tp_;
  TokenShard shape_;
  View mine_;
  Tensor sent_, received_;  // (tp - 1, rows, d)
  std::vector<Pending> pending_;
};

}  // namespace transmamba
