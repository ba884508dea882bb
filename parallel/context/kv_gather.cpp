#include "parallel/context/kv_gather.h"

namespace transmamba {

std::int64_t keys_before(const Sequence& sequence, std::int64_t transpoint, int rank) {
  std::int64_t before = 0;
  for (const Sequence::Part& part : sequence.parts())
    if (part.rank == rank && part.segment.begin < transpoint) before = part.segment.begin;
  return before;
}

TokenExchange earlier_exchange(const Sequence& sequence, std::int64_t transpoint) {
  std::vector<TokenMove> moves;
  for (int to = 0; to < sequence.cp().size(); ++to) {
    const std::int64_t before = keys_before(sequence, transpoint, to);
    for (const Sequence::Part& from : sequence.parts())
      if (from.segment.begin < before)
        moves.push_back({from.rank, to, from.offset, from.segment.begin, from.segment.size()});
  }
  return {sequence.cp(), std::move(moves)};
}

EarlierKeys::EarlierKeys(const Context& context, const Sequence& sequence, std::int64_t transpoint,
                         const Tensor& k, const Tensor& v)
    : exchange_(earlier_exchange(sequence, transpoint)) {
  const std::int64_t before = keys_before(sequence, transpoint, sequence.cp().rank());
  const auto gathered = [&](const Tensor& x) {
    return context.empty({x.dim(0), before, x.dim(2), x.dim(3)});
  };
  k_ = gathered(k), v_ = gathered(v);
  k_transfer_ = exchange_.start_gather(context, "prefix keys", k.merge(2), k_.merge(2), {});
  v_transfer_ = exchange_.start_gather(context, "prefix values", v.merge(2), v_.merge(2), {});
}

void EarlierKeys::start_scatter(const Context& context, const Tensor& of_k, const Tensor& of_v,
                                const Tensor& dk, const Tensor& dv) {
  k_ = v_ = Tensor();
  k_transfer_ = exchange_.start_scatter_add(context, "prefix key gradients", of_k.merge(2), dk.merge(2), {});
  v_transfer_ =
      exchange_.start_scatter_add(context, "prefix value gradients", of_v.merge(2), dv.merge(2), {});
}

}  // namespace transmamba
