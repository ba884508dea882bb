// Walks a schedule as its ranks would: each does its next action as soon as what that needs is there. The
// checker looks whether all come to the end; the simulator notes when.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <optional>

#include "kernels/check.h"
#include "parallel/pipeline/schedule.h"

namespace transmamba {
namespace {

constexpr auto kWhere = "pipeline";
constexpr double kNever = -1;

bool is_forward(const Action& action) { return action.kind == Action::Kind::forward; }

std::int64_t stage_of(const Schedule& schedule, int rank, const Action& action) {
  return transmamba::stage_of(action.chunk, rank, schedule.pp());
}

std::string describe(const Schedule& schedule, int rank, std::size_t slot) {
  const Action& action = schedule.ranks[static_cast<std::size_t>(rank)][slot];
  return fmt::format("rank {}, slot {}: {} of stage {}, micro-batch {}", rank, slot,
                     is_forward(action) ? "forward" : "backward", stage_of(schedule, rank, action),
                     action.micro_batch);
}

/// When each (stage, micro-batch) was done, forward and backward apart.
class Done {
 public:
  explicit Done(const Schedule& schedule)
      : micro_batches_(schedule.micro_batches),
        stages_(std::int64_t{schedule.chunks} * schedule.pp()),
        at_(static_cast<std::size_t>(2 * stages_ * micro_batches_), kNever) {}
  double& operator()(bool forward, std::int64_t stage, std::int64_t micro_batch) {
    return at_[static_cast<std::size_t>(((forward ? 0 : 1) * stages_ + stage) * micro_batches_ +
                                        micro_batch)];
  }
  std::int64_t stages() const { return stages_; }

 private:
  std::int64_t micro_batches_, stages_;
  std::vector<double> at_;
};

/// What an action needs: another action's result, sent from its rank unless that is the same.
struct Input {
  bool forward = true;
  std::int64_t stage = 0;
};
std::vector<Input> inputs(const Action& action, std::int64_t stage, std::int64_t stages) {
  std::vector<Input> needs;
  if (is_forward(action)) {
    if (stage > 0) needs.push_back({true, stage - 1});
  } else {
    needs.push_back({true, stage});
    if (stage + 1 < stages) needs.push_back({false, stage + 1});
  }
  return needs;
}

/// Lets ranks go on until none can. `run(rank, slot, ready)` does an action whose inputs are there at time
/// `ready` and returns when it is done. The slot that each rank has come to is returned.
template <class Run>
std::vector<std::size_t> walk(const Schedule& schedule, Done& done, double transfer, Run&& run) {
  std::vector<std::size_t> slot(schedule.ranks.size(), 0);
  for (bool moved = true; moved;) {
    moved = false;
    for (int rank = 0; rank < schedule.pp(); ++rank) {
      const auto& actions = schedule.ranks[static_cast<std::size_t>(rank)];
      std::size_t& next = slot[static_cast<std::size_t>(rank)];
      for (; next < actions.size(); ++next, moved = true) {
        const Action& action = actions[next];
        const std::int64_t stage = stage_of(schedule, rank, action);
        double ready = 0;
        bool all = true;
        for (const Input& input : inputs(action, stage, done.stages())) {
          const double at = done(input.forward, input.stage, action.micro_batch);
          const bool sent = input.stage % schedule.pp() != rank;
          all = all && at != kNever;
          ready = std::max(ready, at + (sent ? transfer : 0));
        }
        if (!all) break;
        done(is_forward(action), stage, action.micro_batch) = run(rank, next, ready);
      }
    }
  }
  return slot;
}

/// Every action is one that there is, comes once, and no backward comes before its own forward.
void check_actions(const Schedule& schedule, int rank) {
  const auto& actions = schedule.ranks[static_cast<std::size_t>(rank)];
  const auto index = [&](bool forward, const Action& a) {
    return static_cast<std::size_t>(((forward ? 0 : 1) * schedule.chunks + a.chunk) * schedule.micro_batches +
                                    a.micro_batch);
  };
  constexpr std::size_t kNowhere = static_cast<std::size_t>(-1);
  std::vector<std::size_t> slot_of(static_cast<std::size_t>(2 * schedule.chunks * schedule.micro_batches),
                                   kNowhere);
  for (std::size_t slot = 0; slot < actions.size(); ++slot) {
    const Action& a = actions[slot];
    check(a.chunk >= 0 && a.chunk < schedule.chunks, kWhere,
          "{}: expected a chunk from 0 to {}, got chunk {}", describe(schedule, rank, slot),
          schedule.chunks - 1, a.chunk);
    check(a.micro_batch >= 0 && a.micro_batch < schedule.micro_batches, kWhere,
          "{}: expected a micro-batch from 0 to {}", describe(schedule, rank, slot),
          schedule.micro_batches - 1);
    check(is_forward(a) || schedule.has_backward, kWhere, "{}: this schedule has no backward",
          describe(schedule, rank, slot));
    std::size_t& seen = slot_of[index(is_forward(a), a)];
    check(seen == kNowhere, kWhere, "{} is already in slot {}", describe(schedule, rank, slot), seen);
    check(is_forward(a) || slot_of[index(true, a)] != kNowhere, kWhere, "{} comes before its forward",
          describe(schedule, rank, slot));
    seen = slot;
  }
  for (const Action::Kind kind : {Action::Kind::forward, Action::Kind::backward}) {
    for (int chunk = 0; chunk < schedule.chunks; ++chunk) {
      for (std::int64_t m = 0; m < schedule.micro_batches; ++m) {
        const Action a{kind, chunk, m};
        if (!is_forward(a) && !schedule.has_backward) continue;
        check(slot_of[index(is_forward(a), a)] != kNowhere, kWhere,
              "rank {}: {} of stage {}, micro-batch {} is in none of its slots 0 .. {}", rank,
              is_forward(a) ? "forward" : "backward", stage_of(schedule, rank, a), m,
              static_cast<std::int64_t>(actions.size()) - 1);
      }
    }
  }
}

/// What the streams of GPUs do in a schedule as the executor enqueues it, where a send is complete only once
/// its receive has begun: before an action the receive of the next one's input begins, after it its send; a
/// rank waits for the input of an action, and here, sooner than the executor does, for the send of the action
/// before. Transfers of one kind from one rank are a lane.
class Streams {
 public:
  explicit Streams(const Schedule& schedule)
      : schedule_(schedule), pp_(static_cast<std::size_t>(schedule.pp())), lanes_(2 * pp_), ranks_(pp_) {
    for (std::size_t rank = 0; rank < pp_; ++rank) enqueue(rank);
  }

  /// Both ends of a lane have its transfers in one order, for they meet in that order.
  void check_order() const {
    for (std::size_t lane = 0; lane < lanes_.size(); ++lane) {
      const auto& [sent, received, begun] = lanes_[lane];
      const auto differ = std::mismatch(sent.begin(), sent.end(), received.begin(), received.end());
      if (differ.first == sent.end() && differ.second == received.end()) continue;
      const auto text = [](const Transfer* t) {
        return t ? fmt::format("that of micro-batch {} between stages {} and {}", t->micro_batch, t->earlier,
                               t->earlier + 1)
                 : std::string("none");
      };
      fail(kWhere, "{} transfers from rank {}: number {} sent is {}, received {}",
           lane < pp_ ? "forward" : "backward", lane % pp_, differ.first - sent.begin(),
           text(differ.first == sent.end() ? nullptr : &*differ.first),
           text(differ.second == received.end() ? nullptr : &*differ.second));
    }
  }

  /// To be called once.
  void check_progress() {
    std::vector<std::size_t> done(pp_, 0);
    for (bool moved = true; moved;) {
      moved = false;
      for (std::size_t rank = 0; rank < pp_; ++rank)
        for (; done[rank] < ranks_[rank].size() && step(ranks_[rank][done[rank]]); ++done[rank]) moved = true;
    }
    std::string stuck;
    for (std::size_t rank = 0; rank < pp_; ++rank)
      if (done[rank] < ranks_[rank].size()) {
        const Op& op = ranks_[rank][done[rank]];
        stuck += fmt::format("{}rank {} waits for {} transfer {} from rank {}", stuck.empty() ? "" : "; ",
                             rank, op.lane < pp_ ? "forward" : "backward", op.number, op.lane % pp_);
      }
    check(stuck.empty(), kWhere, "the schedule deadlocks where sends wait for their receives: {}", stuck);
  }

 private:
  struct Transfer {
    std::int64_t micro_batch, earlier;  // between stages `earlier` and earlier + 1
    bool operator==(const Transfer&) const = default;
  };
  struct Lane {
    std::vector<Transfer> sent, received;
    std::array<std::size_t, 2> begun{};  // sends, receives
  };
  struct Op {
    enum class Kind { send, receive, wait } kind;
    std::size_t lane, number;
  };

  bool step(const Op& op) {
    auto& begun = lanes_[op.lane].begun;
    if (op.kind == Op::Kind::wait) return op.number < std::min(begun[0], begun[1]);
    return ++begun[op.kind == Op::Kind::receive], true;
  }

  std::optional<Op> transfer(std::size_t rank, const Action& a, Op::Kind kind) {
    const bool receives = kind == Op::Kind::receive, forward = is_forward(a);
    const std::int64_t stage = stage_of(schedule_, static_cast<int>(rank), a),
                       last = std::int64_t{schedule_.chunks} * schedule_.pp() - 1;
    if (stage == (forward == receives ? 0 : last)) return {};
    const std::size_t sender = receives ? (rank + (forward ? pp_ - 1 : 1)) % pp_ : rank;
    const std::size_t lane = sender + (forward ? 0 : pp_);
    auto& list = receives ? lanes_[lane].received : lanes_[lane].sent;
    list.push_back({a.micro_batch, stage - (forward == receives ? 1 : 0)});
    return ranks_[rank].emplace_back(Op{kind, lane, list.size() - 1});
  }
  void wait(std::size_t rank, const std::optional<Op>& op) {
    if (op) ranks_[rank].push_back({Op::Kind::wait, op->lane, op->number});
  }
  void enqueue(std::size_t rank) {
    const auto& actions = schedule_.ranks[rank];
    std::optional<Op> input, sent;
    if (!actions.empty()) input = transfer(rank, actions[0], Op::Kind::receive);
    for (std::size_t i = 0; i < actions.size(); ++i) {
      std::optional<Op> next;
      if (i + 1 < actions.size()) next = transfer(rank, actions[i + 1], Op::Kind::receive);
      wait(rank, input), wait(rank, sent);
      sent = transfer(rank, actions[i], Op::Kind::send);
      input = next;
    }
    wait(rank, sent);
  }

  const Schedule& schedule_;
  std::size_t pp_;
  std::vector<Lane> lanes_;  // forward and then backward, by sender
  std::vector<std::vector<Op>> ranks_;
};

}  // namespace

void check_schedule(const Schedule& schedule) {
  check(schedule.pp() >= 1 && schedule.chunks >= 1 && schedule.micro_batches >= 1, kWhere,
        "a schedule needs at least one rank, chunk and micro-batch, got pp {}, chunks {}, micro-batches {}",
        schedule.pp(), schedule.chunks, schedule.micro_batches);
  for (int rank = 0; rank < schedule.pp(); ++rank) check_actions(schedule, rank);

  Done done(schedule);
  const std::vector<std::size_t> stopped =
      walk(schedule, done, 0, [](int, std::size_t, double ready) { return ready; });
  std::string stuck;
  for (int rank = 0; rank < schedule.pp(); ++rank) {
    const std::size_t slot = stopped[static_cast<std::size_t>(rank)];
    const auto& actions = schedule.ranks[static_cast<std::size_t>(rank)];
    if (slot == actions.size()) continue;
    const Action& action = actions[slot];
    for (const Input& input : inputs(action, stage_of(schedule, rank, action), done.stages()))
      if (done(input.forward, input.stage, action.micro_batch) == kNever)
        stuck += fmt::format("{}{} waits for the {} of stage {} on rank {}", stuck.empty() ? "" : "; ",
                             describe(schedule, rank, slot), input.forward ? "forward" : "backward",
                             input.stage, input.stage % schedule.pp());
  }
  check(stuck.empty(), kWhere, "the schedule deadlocks: {}", stuck);
  if (schedule.pp() == 1) return;
  Streams streams(schedule);
  streams.check_order(), streams.check_progress();
}

Timeline simulate(const Schedule& schedule, std::span<const double> forward, std::span<const double> backward,
                  double transfer) {
  check_schedule(schedule);
  Done done(schedule);
  const auto stages = static_cast<std::size_t>(done.stages());
  check(forward.size() == stages && (backward.size() == stages || !schedule.has_backward), kWhere,
        "expected the seconds of {} virtual stages, got {} forward and {} backward", stages, forward.size(),
        backward.size());
  Timeline timeline;
  timeline.ranks.resize(schedule.ranks.size());
  walk(schedule, done, transfer, [&](int rank, std::size_t slot, double ready) {
    const Action& action = schedule.ranks[static_cast<std::size_t>(rank)][slot];
    const auto stage = static_cast<std::size_t>(stage_of(schedule, rank, action));
    auto& slots = timeline.ranks[static_cast<std::size_t>(rank)];
    const double begin = std::max(ready, slots.empty() ? 0 : slots.back().end);
    const double end = begin + (is_forward(action) ? forward[stage] : backward[stage]);
    slots.push_back({action, begin, end});
    timeline.seconds = std::max(timeline.seconds, end);
    return end;
  });
  double busy = 0;
  for (const auto& slots : timeline.ranks)
    for (const Timeline::Slot& slot : slots) busy += slot.end - slot.begin;
  if (timeline.seconds > 0) timeline.bubble = 1 - busy / (timeline.seconds * schedule.pp());
  return timeline;
}

}  // namespace transmamba
