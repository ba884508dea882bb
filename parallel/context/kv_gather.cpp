#include "parallel/context/kv_gather.h"

#include "kernels/elementwise.h"

namespace transmamba {

std::int64_t keys_seen(const Sequence& sequence, std::int64_t transpoint, int rank) {
  std::int64_t seen = 0;
  for (const Sequence::Part& part : sequence.parts())
    if (part.rank == rank && part.segment.begin < transpoint) seen = std::min(transpoint, part.segment.end);
  return seen;
}

TokenExchange prefix_exchange(const Sequence& sequence, std::int64_t transpoint) {
  std::vector<TokenMove> moves;
  for (int to = 0; to < sequence.cp().size(); ++to) {
    const std::int64_t seen = keys_seen(sequence, transpoint, to);
    for (const Sequence::Part& from : sequence.parts()) {
      const std::int64_t end = std::min(seen, from.segment.end);
      if (from.segment.begin < end)
        moves.push_back({from.rank, to, from.offset, from.segment.begin, end - from.segment.begin});
    }
  }
  return {sequence.cp(), std::move(moves)};
}

PrefixKeys::PrefixKeys(const Context& context, const Sequence& sequence, std::int64_t transpoint,
                       const Tensor& k, const Tensor& v)
    : exchange_(prefix_exchange(sequence, transpoint)), alone_(sequence.cp().size() == 1), k_(k), v_(v) {
  if (alone_ || transpoint == 0) return;
  const std::int64_t seen = keys_seen(sequence, transpoint, sequence.cp().rank());
  const auto gathered = [&](const Tensor& x) { return context.empty({x.dim(0), seen, x.dim(2), x.dim(3)}); };
  k_ = gathered(k), v_ = gathered(v);
  k_transfer_ = exchange_.start_gather(context, "prefix keys", k.merge(2), k_.merge(2));
  v_transfer_ = exchange_.start_gather(context, "prefix values", v.merge(2), v_.merge(2));
}

void PrefixKeys::finish(const Context& context) { k_transfer_.finish(context), v_transfer_.finish(context); }

PrefixKeys::Gradients PrefixKeys::gradients(const Context& context, const Tensor& dk,
                                            const Tensor& dv) const {
  if (alone_) return {dk, dv, false};
  Gradients out{context.empty(k_.shape()), context.empty(v_.shape()), true};
  fill({.value = 0, .y = out.k}, context.stream);
  fill({.value = 0, .y = out.v}, context.stream);
  return out;
}

void PrefixKeys::scatter(const Context& context, const Gradients& gradients, const Tensor& dk,
                         const Tensor& dv) const {
  if (alone_) return;
  fill({.value = 0, .y = dk}, context.stream);
  fill({.value = 0, .y = dv}, context.stream);
  auto k = exchange_.start_scatter_add(context, "prefix key gradients", gradients.k.merge(2), dk.merge(2));
  auto v = exchange_.start_scatter_add(context, "prefix value gradients", gradients.v.merge(2), dv.merge(2));
  k.finish(context), v.finish(context);
}

}  // namespace transmamba
