#include "parallel/context/state_handoff.h"

#include "kernels/elementwise.h"
#include "kernels/ssd.h"

namespace transmamba {
/// A segment's decays stand behind its state.
Summaries::Summaries(const Context& context, std::int64_t count, std::int64_t b, std::int64_t h,
                     std::int64_t n, std::int64_t p)
    : Summaries(context.empty({count, b * h * (n * p + 1)}, context.statistics()), {count, b, h, n, p}) {}

Summaries::Summaries(const Tensor& blocks, const Shape& shape) : flat(blocks) {
  const std::int64_t h = shape[2], p = shape[4], one = shape[3] * p, states = shape[1] * h * one;
  state = blocks.slice(1, 0, states).split(1, h * one).split(2, one).split(3, p);
  log_decay = blocks.slice(1, states, states + shape[1] * h).split(1, h);
}

namespace {

/// Whether `to` reads what `from` has said of its segments: it has one that is later than one of those, or
/// earlier.
bool reads(const Sequence& sequence, int to, int from, StateHandoff::Direction direction) {
  const auto& parts = sequence.parts();
  const auto last = [&](int rank) {
    std::size_t k = parts.size() - 1;
    while (parts[k].rank != rank) --k;
    return k;
  };
  const auto first = [&](int rank) {
    std::size_t k = 0;
    while (parts[k].rank != rank) ++k;
    return k;
  };
  return direction == StateHandoff::Direction::later ? first(from) < last(to) : last(from) > first(to);
}

}  // namespace

std::int64_t handoff_window_bytes(const Sequence& sequence, std::int64_t b, std::int64_t h, std::int64_t n,
                                  std::int64_t p, DType statistics) {
  const std::int64_t segments = sequence.cp().size() * sequence.max_parts();
  return segments * b * h * (n * p + 1) * size_of(statistics);
}

StateHandoff::StateHandoff(const Context& context, const Sequence& sequence, const Shape& state,
                           Direction direction, std::string_view purpose)
    : sequence_(&sequence), direction_(direction), purpose_(purpose) {
  Communicator& cp = sequence.cp();
  if (!cp.window()) return;
  const Shape shape{cp.size() * sequence.max_parts(), state[0] * state[1] * (state[2] * state[3] + 1)};
  all_ = Tensor(*cp.window(), shape, context.statistics());
  cp.expect(incoming());
}

std::vector<Incoming> StateHandoff::incoming() const {
  const Communicator& cp = sequence_->cp();
  std::vector<Incoming> messages;
  for (int other = 0; other < cp.size(); ++other)
    if (other != cp.rank() && reads(*sequence_, cp.rank(), other, direction_))
      messages.push_back({other, of_rank(other)});
  return messages;
}

Tensor StateHandoff::of_rank(int rank) const {
  const std::int64_t parts = sequence_->max_parts();
  return all_.slice(0, rank * parts, (rank + 1) * parts);
}

void StateHandoff::start(const Context& context, Summaries mine) {
  mine_ = std::move(mine);
  Communicator& cp = sequence_->cp();
  if (!all_) all_ = context.empty({cp.size() * mine_.flat.dim(0), mine_.flat.dim(1)}, mine_.flat.dtype());
  std::vector<Outgoing> outgoing;
  for (int other = 0; other < cp.size(); ++other)
    if (reads(*sequence_, other, cp.rank(), direction_))
      outgoing.push_back({other, mine_.flat, of_rank(cp.rank())});
  std::vector<Incoming> messages = incoming();
  receives_ = !messages.empty();
  if (reads(*sequence_, cp.rank(), cp.rank(), direction_))
    messages.push_back({cp.rank(), of_rank(cp.rank())});
  pending_ = cp.start_exchange(purpose_, outgoing, messages);
}

/// A segment's place is its rank's, then its index there, as Sequence::places() has it. What nobody reads is
/// undefined.
Summaries StateHandoff::all(const Context& context) {
  if (receives_)
    pending_.wait();
  else
    sequence_->keep(context.stream, std::move(pending_), {mine_.flat});
  Shape shape = mine_.state.shape();
  shape[0] = all_.dim(0);
  return {all_, shape};
}

Tensor StateHandoff::wanted(const Context& context) const {
  Shape shape = mine_.state.shape();
  shape[0] = static_cast<std::int64_t>(sequence_->mine().size());
  return context.empty(shape, mine_.flat.dtype());
}

Entering StateHandoff::combine(const Context& context) {
  const Summaries gathered = all(context);
  if (!receives_) return {};
  const Entering entering{wanted(context), context.empty(mine_.log_decay.shape(), mine_.flat.dtype())};
  copy({.x = mine_.log_decay, .y = entering.log_decay}, context.stream);
  ssd_combine({.log_decay = gathered.log_decay,
               .local = gathered.state,
               .segments = sequence_->places(),
               .states = entering.states},
              context.stream);
  all_ = Tensor();
  return entering;
}

Tensor StateHandoff::combine_backward(const Context& context) {
  const Summaries gathered = all(context);
  if (!receives_) return {};
  const Tensor dends = wanted(context);
  ssd_combine_backward({.log_decay = gathered.log_decay,
                        .dstates = gathered.state,
                        .segments = sequence_->places(),
                        .dlocal = dends},
                       context.stream);
  all_ = Tensor();
  return dends;
}

}  // namespace transmamba
