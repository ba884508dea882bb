#include "parallel/layers/token_shard.h"

#include <algorithm>

#include "kernels/elementwise.h"

namespace transmamba {
namespace {

/// NCCL's messages on NVLink run on up to 32; copy engines take none.
constexpr int kNcclProcessors = 32;

/// Where other ranks' tokens go.
Tensor receiving(const Context& context, Communicator& tp, const Shape& shape) {
  return tp.window() ? Tensor(*tp.window(), shape, context.dtype) : context.empty(shape);
}

/// The rank `step` after this one, or before it.
int rank_at(const Communicator& tp, int step) { return (tp.rank() + step + tp.size()) % tp.size(); }

/// Sends `out` to the rank `step` after this one, `there`, and gets `in` from the one before it. Either may
/// be empty.
Pending pass(Communicator& tp, std::string_view purpose, int step, const ConstView& out, const View& there,
             const View& in) {
  const Outgoing outgoing{rank_at(tp, step), out, there};
  const Incoming incoming{rank_at(tp, -step), in};
  return tp.start_exchange(purpose, {&outgoing, out.numel() > 0 ? 1U : 0U},
                           {&incoming, in.numel() > 0 ? 1U : 0U});
}

}  // namespace

std::int64_t token_window_bytes(const Communicator& tp, std::int64_t tokens, std::int64_t d, DType dtype) {
  const std::int64_t ranks = tp.size(), row = d * size_of(dtype);
  return window_room(tokens * row) + window_room((ranks - 1) * ((tokens + ranks - 1) / ranks) * row);
}

TokenShard::TokenShard(Communicator& tp, std::int64_t all)
    : tokens(all),
      rows((all + tp.size() - 1) / tp.size()),
      mine(std::clamp<std::int64_t>(all - tp.rank() * rows, 0, rows)),
      spare(tp.size() == 1 || tp.window() ? 0 : kNcclProcessors),
      rank_(tp.rank()),
      ranks_(tp.size()) {}

TokenRun TokenShard::run_of(int step, bool moves) const {
  const std::int64_t begin = std::min((rank_ + step + ranks_) % ranks_ * rows, tokens);
  return {begin, std::min(begin + rows, tokens), step == 0, moves ? spare : 0};
}

GatherTokens::GatherTokens(const Context& context, Communicator& tp, std::string_view purpose,
                           const Tensor& shard, std::int64_t tokens)
    : context_(context), tp_(tp), shape_(tp, tokens), shard_(shard), all_(shard) {
  if (tp.size() == 1) return;
  all_ = receiving(context, tp, {tokens, shard.dim(1)});
  const TokenRun own = shape_.run_of(0);
  for (int step = 1; step < tp.size(); ++step) {
    const TokenRun from = shape_.run_of(-step);
    pending_.push_back(pass(tp, purpose, step, shard.slice(0, 0, shape_.mine),
                            all_.slice(0, own.begin, own.end), all_.slice(0, from.begin, from.end)));
  }
}

View GatherTokens::arrived(int step) {
  if (step == 0) return shard_.slice(0, 0, shape_.mine);
  pending_[static_cast<std::size_t>(step - 1)].wait();
  const TokenRun run = shape_.run_of(-step);
  return all_.slice(0, run.begin, run.end);
}

Tensor GatherTokens::finish() {
  for (Pending& pending : pending_) pending.wait();
  if (const TokenRun run = shape_.run_of(0); tp_.size() > 1 && shape_.mine > 0)
    copy({.x = shard_.slice(0, 0, shape_.mine), .y = all_.slice(0, run.begin, run.end)}, context_.stream);
  return all_;
}

ScatterTokens::ScatterTokens(const Context& context, Communicator& tp, std::int64_t tokens, View mine)
    : context_(context), tp_(tp), shape_(tp, tokens), mine_(mine.slice(0, 0, shape_.mine)) {
  if (tp.size() == 1) return;
  sent_ = context.empty({tp.size() - 1, shape_.rows, mine.dim(1)});
  received_ = receiving(context, tp, {tp.size() - 1, shape_.rows, mine.dim(1)});
}

View ScatterTokens::addend(int step) const {
  if (step == tp_.size()) return mine_;
  const TokenRun run = shape_.run_of(step);
  return sent_.slice(0, step - 1, step).merge(0).slice(0, 0, run.end - run.begin);
}

void ScatterTokens::start(std::string_view purpose, int step) {
  const View out = addend(step);
  const Tensor place = received_.slice(0, step - 1, step).merge(0);
  pending_.push_back(
      pass(tp_, purpose, step, out, place.slice(0, 0, out.dim(0)), place.slice(0, 0, shape_.mine)));
}

void ScatterTokens::finish() {
  for (std::size_t i = 0; i < pending_.size(); ++i) {
    pending_[i].wait();
    const auto at = static_cast<std::int64_t>(i);
    if (shape_.mine > 0)
      add({.x = received_.slice(0, at, at + 1).merge(0).slice(0, 0, shape_.mine), .y = mine_},
          context_.stream);
  }
}

}  // namespace transmamba
