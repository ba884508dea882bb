#include "parallel/layers/token_shard.h"

#include <algorithm>

namespace transmamba {

TokenShard::TokenShard(const Communicator& tp, std::int64_t all)
    : tokens(all),
      rows((all + tp.size() - 1) / tp.size()),
      mine(std::clamp<std::int64_t>(all - tp.rank() * rows, 0, rows)) {}

GatherTokens::GatherTokens(const Context& context, Communicator& tp, std::string_view purpose,
                           const Tensor& shard, std::int64_t tokens)
    : all_(shard) {
  if (tp.size() == 1) return;
  const Tensor all = context.empty({shard.dim(0) * tp.size(), shard.dim(1)});
  pending_ = tp.start_all_gather(purpose, shard, all);
  all_ = all.slice(0, 0, tokens);
}

Tensor GatherTokens::finish() {
  pending_.wait();
  return all_;
}

ScatterTokens::ScatterTokens(const Context& context, Communicator& tp, std::int64_t tokens,
                             std::int64_t width)
    : tp_(tp), shape_(tp, tokens), partial_(context.empty({shape_.rows * tp.size(), width})) {
  shard_ =
      tp.size() == 1 ? partial_ : partial_.slice(0, shape_.rows * tp.rank(), shape_.rows * (tp.rank() + 1));
}

View ScatterTokens::partial() const { return partial_.slice(0, 0, shape_.tokens); }

void ScatterTokens::start(std::string_view purpose) {
  if (tp_.size() > 1) pending_ = tp_.start_reduce_scatter(purpose, partial_, shard_);
}

Tensor ScatterTokens::finish() {
  pending_.wait();
  return shard_;
}

}  // namespace transmamba
