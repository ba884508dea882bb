// Looks for the division of layers whose schedule ends first. Dealing layers so that the dearest stage costs
// least is not that: an interleaved rank runs several stages, and what counts is their sum; what ranks do
// before others have begun and after they have ended is the outer stages' work alone; and where layers are
// too few to be even, a schedule hides more of one stage than of another.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "parallel/pipeline/partition.h"
#include "parallel/pipeline/schedule.h"

namespace transmamba {
namespace {

/// What improves by less is rounding.
constexpr double kLess = 1 - 1e-9;
/// Most moves of a step that are timed, those of the least bounds.
constexpr std::size_t kPatience = 32;

/// A schedule in an order in which every action comes after what it needs, so that one pass over it times it.
class Replay {
 public:
  Replay(const PipelineLoad& load, std::int64_t micro_batches) : ranks_(static_cast<std::size_t>(load.pp)) {
    const std::size_t stages = ranks_ * static_cast<std::size_t>(load.chunks);
    const std::vector<double> one(stages, 1.0);
    const Timeline timeline =
        simulate(one_forward_one_backward(load.pp, load.chunks, micro_batches), one, one);
    struct Slot {
      double begin;
      std::size_t rank, pass;
      std::int64_t micro_batch;
    };
    std::vector<Slot> slots;
    for (std::size_t rank = 0; rank < ranks_; ++rank)
      for (const auto& [action, begin, end] : timeline.ranks[rank])
        slots.push_back({begin, rank,
                         2 * (static_cast<std::size_t>(action.chunk) * ranks_ + rank) +
                             (action.kind == Action::Kind::backward),
                         action.micro_batch});
    std::stable_sort(slots.begin(), slots.end(),
                     [](const Slot& a, const Slot& b) { return a.begin < b.begin; });
    std::vector<std::size_t> number(2 * stages * static_cast<std::size_t>(micro_batches));
    const auto number_of = [&](std::size_t pass, std::int64_t micro_batch) -> std::size_t& {
      return number[pass * static_cast<std::size_t>(micro_batches) + static_cast<std::size_t>(micro_batch)];
    };
    for (const Slot& s : slots) {
      const bool is_forward = s.pass % 2 == 0, has_input = s.pass != (is_forward ? 0 : 2 * stages - 1);
      number_of(s.pass, s.micro_batch) = actions_.size();
      actions_.push_back(
          {s.pass, s.rank,
           has_input ? number_of(is_forward ? s.pass - 2 : s.pass + 2, s.micro_batch) : kNone});
    }
    end_.resize(actions_.size());
    free_.resize(ranks_);
  }

  /// `passes`: seconds of stage s's forward pass at 2 s, of its backward pass at 2 s + 1.
  double operator()(const std::vector<double>& passes, double transfer) {
    std::fill(free_.begin(), free_.end(), 0.0);
    for (std::size_t i = 0; i < actions_.size(); ++i) {
      const Timed& a = actions_[i];
      double begin = free_[a.rank];
      if (a.input != kNone) begin = std::max(begin, end_[a.input] + transfer);
      free_[a.rank] = end_[i] = begin + passes[a.pass];
    }
    return *std::max_element(free_.begin(), free_.end());
  }

 private:
  static constexpr std::size_t kNone = std::numeric_limits<std::size_t>::max();
  struct Timed {
    std::size_t pass, rank, input;  // the action that sends its input, always from another rank
  };
  std::size_t ranks_;
  std::vector<Timed> actions_;
  std::vector<double> end_, free_;  // of actions, of ranks
};

using Cuts = std::vector<std::size_t>;  // stage s has layers [cuts[s], cuts[s + 1])

class Search {
 public:
  explicit Search(const PipelineLoad& load)
      : load_(load),
        ranks_(static_cast<std::size_t>(load.pp)),
        stages_(ranks_ * static_cast<std::size_t>(load.chunks)),
        passes_(2 * stages_) {
    for (std::vector<double>& sum : sum_) sum.resize(load.layer.size() + 1);
    for (std::size_t i = 0; i < load.layer.size(); ++i) {
      sum_[0][i + 1] = sum_[0][i] + load.layer[i].forward;
      sum_[1][i + 1] = sum_[1][i] + load.layer[i].backward;
    }
    // Past its warm-up a pipeline repeats itself with every pp micro-batches.
    const std::int64_t group = load.pp, all = load.micro_batches,
                       few = group * std::max<std::int64_t>(4, 1024 / (group * group * load.chunks));
    const std::int64_t counted = all <= few + group ? all : few + all % group;
    replays_.emplace_back(load, counted);
    if (counted < all) replays_.emplace_back(load, counted + group);
    groups_ = static_cast<double>((all - counted) / group);
  }

  /// Of a step.
  double seconds(const Cuts& cuts) {
    cut(cuts);
    const double counted = replays_.front()(passes_, load_.transfer);
    return counted + groups_ * (replays_.back()(passes_, load_.transfer) - counted);
  }

  /// No order of the actions is quicker: a rank waits until its first input has passed all ranks before, does
  /// its work, and then its last gradient has to pass them.
  double bound(const Cuts& cuts) {
    cut(cuts);
    double before = 0, longest = 0;
    for (std::size_t rank = 0; rank < ranks_; ++rank) {
      double mine = 0;
      for (std::size_t s = rank; s < stages_; s += ranks_) mine += passes_[2 * s] + passes_[2 * s + 1];
      longest = std::max(longest, before + mine * static_cast<double>(load_.micro_batches));
      before += passes_[2 * rank] + passes_[2 * rank + 1] + 2 * load_.transfer;
    }
    return longest;
  }

  /// Moves runs of neighbouring cuts by one layer or two (a mixer and its MLP), always as makes `cost` least,
  /// until none makes it less.
  template <class Cost>
  Cuts descend(Cuts cuts, Cost&& cost) {
    for (double least = cost(cuts);;) {
      std::vector<std::pair<double, Cuts>> moves;
      for (std::size_t first = 1; first < stages_; ++first)
        for (std::size_t last = first; last < stages_; ++last)
          for (const int by : {-1, 1, -2, 2}) {
            const std::size_t room =
                by < 0 ? cuts[first] - cuts[first - 1] : cuts[last + 1] - cuts[last];  // of layers
            if (room <= static_cast<std::size_t>(std::abs(by))) continue;
            Cuts moved = cuts;
            for (std::size_t c = first; c <= last; ++c) moved[c] += static_cast<std::size_t>(by);
            if (const double b = bound(moved); b < least * kLess) moves.emplace_back(b, std::move(moved));
          }
      std::stable_sort(moves.begin(), moves.end(),
                       [](const auto& a, const auto& b) { return a.first < b.first; });
      const double before = least;
      for (std::size_t i = 0; i < std::min(moves.size(), kPatience); ++i) {
        if (moves[i].first >= least * kLess) break;
        if (const double c = cost(moves[i].second); c < least * kLess) least = c, cuts = moves[i].second;
      }
      if (least == before) return cuts;
    }
  }

 private:
  void cut(const Cuts& cuts) {
    for (std::size_t s = 0; s < stages_; ++s)
      for (const std::size_t way : {0, 1}) passes_[2 * s + way] = sum_[way][cuts[s + 1]] - sum_[way][cuts[s]];
    passes_[0] += load_.embedding.forward, passes_[1] += load_.embedding.backward;
    passes_[2 * stages_ - 2] += load_.head.forward, passes_[2 * stages_ - 1] += load_.head.backward;
  }

  const PipelineLoad& load_;
  std::size_t ranks_, stages_;
  std::array<std::vector<double>, 2> sum_;  // of the layers before, forward and backward
  std::vector<double> passes_;              // as Replay takes them
  std::vector<Replay> replays_;             // of as many micro-batches as are looked at, and a group more
  double groups_ = 0;                       // that are not looked at
};

}  // namespace

std::vector<Stage> quickest_partition(const PipelineLoad& load) {
  std::vector<double> totals;
  for (const Seconds& layer : load.layer) totals.push_back(layer.total());
  std::vector<Stage> stages =
      partition(totals, load.embedding.total(), load.head.total(), std::int64_t{load.pp} * load.chunks);
  if (load.pp == 1) return stages;

  Search search(load);
  Cuts even{0};
  for (const Stage& stage : stages) even.push_back(static_cast<std::size_t>(stage.end));
  const auto seconds = [&](const Cuts& cuts) { return search.seconds(cuts); };
  const Cuts bounded = search.descend(even, [&](const Cuts& cuts) { return search.bound(cuts); });
  Cuts best = search.descend(even, seconds);
  if (Cuts other = search.descend(bounded, seconds); seconds(other) < seconds(best) * kLess) best = other;
  for (std::size_t s = 0; s < stages.size(); ++s) {
    stages[s].begin = static_cast<std::int64_t>(best[s]);
    stages[s].end = static_cast<std::int64_t>(best[s + 1]);
  }
  return stages;
}

}  // namespace transmamba
