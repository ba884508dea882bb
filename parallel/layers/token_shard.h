// Megatron's sequence parallelism: between the layers' matrix products, each tp rank holds a run of the
// tokens.
#pragma once

#include "core/tensor.h"
#include "parallel/comm/communicator.h"

namespace transmamba {

/// `tokens` = b t rows, cut in runs of `rows` = ceil(tokens / tp): rank i has [i rows, (i + 1) rows). Where
/// tp does not divide `tokens` the last rows of the last ranks stand for no token: they are undefined, travel
/// along and are never read.
struct TokenShard {
  TokenShard(const Communicator& tp, std::int64_t tokens);
  std::int64_t tokens, rows;
  std::int64_t mine;  ///< rows of this rank that are tokens
};

/// All the tokens (tokens, d) from each rank's (rows, d), which must stay until finish(). With one rank, the
/// shard itself.
class GatherTokens {
 public:
  GatherTokens(const Context& context, Communicator& tp, std::string_view purpose, const Tensor& shard,
               std::int64_t tokens);
  Tensor finish();

 private:
  Tensor all_;
  Pending pending_;
};
inline Tensor gather_tokens(const Context& context, Communicator& tp, std::string_view purpose,
                            const Tensor& shard, std::int64_t tokens) {
  return GatherTokens(context, tp, purpose, shard, tokens).finish();
}

/// Its conjugate, in two steps, so that work can go between them: `partial` is (rows tp, d), of which the
/// first `tokens` rows are written by the caller; after finish() `shard` (rows, d) is the sum over ranks of
/// this rank's run.
class ScatterTokens {
 public:
  ScatterTokens(const Context& context, Communicator& tp, std::int64_t tokens, std::int64_t width);
  View partial() const;  ///< (tokens, width)
  void start(std::string_view purpose);
  Tensor finish();

 private:
  Communicator& tp_;
  TokenShard shape_;
  Tensor partial_, shard_;
  Pending pending_;
};

}  // namespace transmamba
