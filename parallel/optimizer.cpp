#include "parallel/optimizer.h"

#include <algorithm>

#include "kernels/adamw.h"
#include "kernels/elementwise.h"

namespace transmamba {

Optimizer::Optimizer(const OptimizerConfig& config, const ParameterStore& store, const Context& context,
                     int part)
    : config_(config),
      store_(&store),
      owned_(store.owned(part)),
      m_(context.empty({store.owned_size()}, context.statistics())),
      v_(context.empty({store.owned_size()}, context.statistics())) {
  std::int64_t owned = 0, mastered = 0;
  for (const Bucket& bucket : store.buckets()) {  // those with a master are the first
    owned += (bucket.end - bucket.begin) / store.parts();
    if (bucket.values.dtype() != context.statistics()) mastered = owned;
  }
  if (mastered > 0) master_ = context.empty({mastered}, context.statistics());
  for (const Tensor& flat : {master_, m_, v_})
    if (flat) fill({.value = 0, .y = flat}, context.stream);
  std::int64_t begin = 0;
  for (const Bucket& bucket : store.buckets()) {
    const std::int64_t size = (bucket.end - bucket.begin) / store.parts(), end = begin + size;
    if (size == 0) continue;
    Part& mine = parts_.emplace_back();
    mine.values = bucket.values.slice(0, part * size, (part + 1) * size);
    mine.grads = bucket.grads.slice(0, part * size, (part + 1) * size);
    if (end <= mastered) mine.master = master_.slice(0, begin, end);
    mine.m = m_.slice(0, begin, end), mine.v = v_.slice(0, begin, end);
    mine.weight_decay = bucket.weight_decay, mine.primary = bucket.primary;
    begin = end;
  }
}

void Optimizer::add_squared_norm(const Context& context, const View& result) const {
  for (const Part& part : parts_)
    if (part.primary) sum({.x = part.grads, .squares = true, .result = result}, context.stream);
}

void Optimizer::step(const Context& context, std::int64_t step, double lr, const ConstView& squared_norm,
                     const ConstView& loss) {
  for (const Part& part : parts_)
    adamw({.weight = part.master ? part.master : part.values,
           .grad = part.grads,
           .m = part.m,
           .v = part.v,
           .rounded = part.master ? part.values : View(),
           .squared_norm = squared_norm,
           .loss = loss,
           .clip_grad = config_.clip_grad,
           .lr = lr,
           .beta1 = config_.beta1,
           .beta2 = config_.beta2,
           .eps = config_.eps,
           .weight_decay = part.weight_decay ? config_.weight_decay : 0,
           .step = step + 1},
          context.stream);
}

void Optimizer::set_master(std::size_t parameter, std::int64_t begin, const Tensor& values) {
  if (!master_) return;
  const Tensor flat(View(values.view().raw(), values.dtype(), {values.numel()}));
  for (const OwnedRun& run : owned_) {
    const std::int64_t first = std::max(begin, run.begin), last = std::min(begin + values.numel(), run.end);
    const std::int64_t place = run.owned_offset + first - run.begin;
    if (run.parameter == parameter && first < last && place < master_.numel())
      from_host(store_->context(), flat.slice(0, first - begin, last - begin),
                master_.slice(0, place, place + last - first));
  }
}

View Optimizer::weights(const OwnedRun& run) const {
  if (master_ && run.owned_offset < master_.numel()) return of(master_, run);
  const Parameter& p = store_->parameters()[run.parameter];
  return View(p.value.raw(), p.value.dtype(), {p.value.numel()}).slice(0, run.begin, run.end);
}

}  // namespace transmamba
