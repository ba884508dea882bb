#include "parallel/context/state_handoff.h"

#include "kernels/elementwise.h"
#include "kernels/ssd.h"

namespace transmamba {

Summaries::Summaries(const Context& context, std::int64_t count, std::int64_t b, std::int64_t h,
                     std::int64_t n, std::int64_t p) {
  const std::int64_t states = count * b * h * n * p, decays = count * b * h;
  flat = context.empty({states + decays}, context.statistics());
  fill({.value = 0, .y = flat}, context.stream);
  state = View(flat.slice(0, 0, states).view().raw(), flat.dtype(), {count, b, h, n, p});
  log_decay = View(flat.slice(0, states, states + decays).view().raw(), flat.dtype(), {count, b, h});
}

StateHandoff::StateHandoff(const Context& context, const Sequence& sequence, Summaries mine,
                           std::string_view purpose)
    : sequence_(&sequence),
      mine_(std::move(mine)),
      all_(context.empty({sequence.cp().size(), mine_.flat.numel()}, context.statistics())),
      pending_(sequence.cp().start_all_gather(purpose, mine_.flat, all_)) {}

Summaries StateHandoff::in_order(const Context& context) {
  pending_.wait();
  const Shape& s = mine_.state.shape();
  const auto segments = static_cast<std::int64_t>(sequence_->parts().size());
  Summaries ordered(context, segments, s[1], s[2], s[3], s[4]);
  for (std::int64_t k = 0; k < segments; ++k) {
    const Sequence::Part& part = sequence_->parts()[static_cast<std::size_t>(k)];
    // The rank's block seen as `mine_` is laid out.
    std::byte* block = all_.slice(0, part.rank, part.rank + 1).view().raw();
    const View state(block, all_.dtype(), s);
    const View log_decay(block + state.numel() * size_of(all_.dtype()), all_.dtype(),
                         mine_.log_decay.shape());
    copy({.x = state.slice(0, part.index, part.index + 1), .y = ordered.state.slice(0, k, k + 1)},
         context.stream);
    copy({.x = log_decay.slice(0, part.index, part.index + 1), .y = ordered.log_decay.slice(0, k, k + 1)},
         context.stream);
  }
  all_ = Tensor();
  return ordered;
}

Tensor StateHandoff::mine_of(const Context& context, const View& states) const {
  Shape shape = states.shape();
  shape[0] = static_cast<std::int64_t>(sequence_->mine().size());
  const Tensor mine = context.empty(shape, context.statistics());
  for (std::int64_t i = 0; i < shape[0]; ++i) {
    const auto k = static_cast<std::int64_t>(sequence_->mine()[static_cast<std::size_t>(i)]);
    copy({.x = states.slice(0, k, k + 1), .y = mine.slice(0, i, i + 1)}, context.stream);
  }
  return mine;
}

Entering StateHandoff::combine(const Context& context) {
  const Summaries local = in_order(context);
  const Tensor states = context.empty(local.state.shape(), context.statistics()),
               log_decay = context.empty(local.log_decay.shape(), context.statistics());
  ssd_combine({.log_decay = local.log_decay, .local = local.state, .states = states}, context.stream);
  copy({.x = local.log_decay, .y = log_decay}, context.stream);
  return {mine_of(context, states), log_decay};
}

Tensor StateHandoff::combine_backward(const Context& context, const Entering& entering) {
  const Summaries direct = in_order(context);
  ssd_combine_backward({.dstates = direct.state, .log_decay = entering.log_decay, .dlocal = direct.state},
                       context.stream);
  return mine_of(context, direct.state);
}

}  // namespace transmamba
