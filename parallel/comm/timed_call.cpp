#include "parallel/comm/timed_call.h"

#include <algorithm>
#include <numeric>

#include "parallel/comm/backend.h"

namespace transmamba {
namespace {

using Kind = Call::Kind;

double in_seconds(std::chrono::steady_clock::duration time) {
  return std::chrono::duration<double>(time).count();
}

std::int64_t size(const ConstView& x) { return static_cast<std::int64_t>(bytes_of(x)); }

template <class Messages>
std::int64_t bytes_of_all(const Messages& messages) {
  return std::accumulate(messages.begin(), messages.end(), std::int64_t{0},
                         [](std::int64_t sum, const auto& m) { return sum + size(m.data); });
}

/// What this rank sends to others in the best algorithm, as recorder.h defines it.
std::int64_t bytes_sent(const Call& call, int rank, std::int64_t ranks) {
  switch (call.kind) {
    case Kind::all_reduce: return 2 * (ranks - 1) * size(call.out) / ranks;
    case Kind::all_gather: return (ranks - 1) * size(call.in);
    case Kind::reduce_scatter: return (ranks - 1) * size(call.out);
    case Kind::broadcast: return call.peer == rank ? size(call.out) : 0;
    case Kind::exchange: return bytes_of_all(call.outgoing);
    case Kind::send: return size(call.in);
    case Kind::receive:
    case Kind::barrier: return 0;
  }
  return 0;
}

}  // namespace

std::int64_t call_size(const Call& call) {
  switch (call.kind) {
    case Kind::exchange: return std::max(bytes_of_all(call.outgoing), bytes_of_all(call.incoming));
    case Kind::reduce_scatter:
    case Kind::send: return size(call.in);
    case Kind::barrier: return 0;
    default: return size(call.out);
  }
}

double bus_factor(Call::Kind kind, int ranks) {
  const double share = static_cast<double>(ranks - 1) / ranks;
  if (kind == Kind::all_reduce) return 2 * share;
  return kind == Kind::all_gather || kind == Kind::reduce_scatter ? share : 1;
}

TimedCall::TimedCall(const Communicator& of, std::shared_ptr<Recorder> recorder, const Call& call)
    : recorder_(std::move(recorder)),
      axis_(of.axis()),
      purpose_(call.purpose),
      bytes_(bytes_sent(call, of.rank(), of.size())) {
  if (Profile* const profile = recorder_->profile())
    span_ = profile->call(axis_, call.purpose, to_string(call.kind));
  if (span_) {
    span_->group = of.group();
    if (call.kind == Kind::send) span_->from = of.rank(), span_->to = call.peer;
    if (call.kind == Kind::receive) span_->from = call.peer, span_->to = of.rank();
    span_->bytes = bytes_, span_->size = call_size(call);
    span_->bus_factor = bus_factor(call.kind, of.size());
  }
  start_ = Clock::now();
}

void TimedCall::started(std::unique_ptr<Work> inner) {
  inner_ = std::move(inner);
  expose(Clock::now() - start_);
  if (span_) recorder_->profile()->call_is_started();
}

void TimedCall::expose(Clock::duration time) {
  exposed_ += time;
  if (Profile* const profile = recorder_->profile()) profile->charge(in_seconds(time));
}

void TimedCall::wait() {
  const auto begin = Clock::now();
  if (inner_) inner_->wait();
  if (!end_) end_ = Clock::now(), expose(*end_ - begin);
  recorder_->add(
      axis_, purpose_,
      {.calls = 1, .bytes = bytes_, .seconds = in_seconds(*end_ - start_), .exposed = in_seconds(exposed_)});
  if (span_)
    span_->ended(in_seconds(start_.time_since_epoch()), in_seconds(end_->time_since_epoch()),
                 in_seconds(exposed_));
}

bool TimedCall::poll() {
  if (end_) return true;
  const auto begin = Clock::now();
  const bool done = !inner_ || inner_->poll();
  const auto now = Clock::now();
  expose(now - begin);
  if (done) end_ = now;
  return done;
}

}  // namespace transmamba
