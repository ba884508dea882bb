#include "parallel/comm/roll_call.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <tuple>

namespace transmamba {
namespace {

using Clock = std::chrono::steady_clock;
/// As MPI is asked for what has come, which takes a microsecond or a few.
constexpr std::chrono::milliseconds kBetweenLooks{10};
constexpr std::size_t kMostCalls = 3;  // that a rank's line names
constexpr std::size_t kMostLines = 8;

/// The one that was made first stands before the others: it is what the GPU waits in, as far as one can tell.
std::vector<GpuCall> in_turn(std::vector<GpuCall> calls) {
  std::sort(calls.begin(), calls.end(), [](const GpuCall& a, const GpuCall& b) { return a.turn < b.turn; });
  return calls;
}

}  // namespace

std::string who_is_where(const std::vector<std::optional<Place>>& places,
                         const std::vector<std::string>& hosts) {
  std::map<std::pair<std::int64_t, std::uint64_t>, std::int64_t> latest;  // call by step and group
  for (const auto& place : places)
    if (place) {
      std::int64_t& number = latest[{place->turn.step, place->turn.group}];
      number = std::max(number, place->turn.number);
    }
  // Numbers of different groups say nothing about each other.
  const auto order = [&](std::size_t rank) {
    if (!places[rank]) return std::tuple(false, std::int64_t{0}, false);
    const Place::Turn& turn = places[rank]->turn;
    const bool is_behind = turn.group != 0 && turn.number < latest.at({turn.step, turn.group});
    return std::tuple(true, turn.step, !is_behind);
  };
  std::vector<std::size_t> ranks(places.size());
  std::iota(ranks.begin(), ranks.end(), std::size_t{0});
  std::stable_sort(ranks.begin(), ranks.end(), [&](auto a, auto b) { return order(a) < order(b); });
  const bool names_hosts =
      hosts.size() == places.size() &&
      std::any_of(hosts.begin(), hosts.end(), [&](const auto& host) { return host != hosts[0]; });
  std::string text;
  const std::size_t lines = std::min(ranks.size(), kMostLines);
  for (std::size_t i = 0; i < lines; ++i) {
    const auto& place = places[ranks[i]];
    text += fmt::format(
        "\n  rank {}{} {}", ranks[i], names_hosts ? " on " + hosts[ranks[i]] : "",
        place ? "in " + place->text : "is in no call and does not answer: it computes, hangs or is gone");
  }
  if (lines == ranks.size()) return text;
  const auto silent = std::count_if(ranks.begin() + kMostLines, ranks.end(),
                                    [&](std::size_t rank) { return !places[rank].has_value(); });
  return text + fmt::format("\n  and {} more ranks{}", ranks.size() - lines,
                            silent > 0 ? fmt::format(", {} of them in no call", silent) : "");
}

void LastWords::look(double seconds, const std::function<Place()>& place) {
  if (said_ || !told_()) return;
  const auto now = Clock::now();
  if (!told_at_) told_at_ = now;
  if (std::min(seconds, std::chrono::duration<double>(now - *told_at_).count()) < patience_) return;
  said_ = true;
  say_(fmt::format("{} has waited {:.3g} s in {}, and is told to end", rank_, seconds, place().text));
}

RollCallTimes::RollCallTimes(double timeout)
    : asks(timeout - std::min(timeout / 2, 5.0)), ends(timeout - std::min(timeout / 3, 3.0)) {}

std::string place_of(std::int64_t step, const Call& call, std::string_view axis, std::int64_t number) {
  return fmt::format("{}{} of group {}, number {}", step > 0 ? fmt::format("step {}: ", step) : "",
                     to_string(call), axis, number);
}

std::string waited_too_long(std::string_view axis, int rank, double seconds, const Call& call, double timeout,
                            const std::string& why, const std::string& who_is_where) {
  return fmt::format("[{}] rank {} has waited {:.3g} s in {}, and parallel.timeout is {}; {}{}", axis, rank,
                     seconds, to_string(call), timeout, why, who_is_where);
}

void GpuWaits::belong_to(Communicator& world) {
  rank_ = world.rank(), roll_call_ = world.roll_call(), recorder_ = &world.recorder();
}

std::string GpuWaits::look(double seconds, const UnderWay& under_way) {
  const auto now = Clock::now();
  if (now - looked_ < kBetweenLooks) return "";
  looked_ = now;
  const std::shared_ptr<RollCall> roll_call = roll_call_.lock();
  if (!roll_call) return "";  // not yet, or no longer, one of several ranks
  const auto here = [&] { return place(in_turn(under_way())); };
  roll_call->listen(here);
  if (LastWords* const last_words = recorder_->last_words()) last_words->look(seconds, here);
  const RollCallTimes times(timeout_);
  if (seconds < times.asks) {
    wait_ = 0;
    return "";
  }
  if (wait_ == 0) wait_ = roll_call->new_wait();
  roll_call->ask(wait_);
  if (seconds < times.ends && !roll_call->all_have_answered()) return "";
  const std::vector<GpuCall> calls = in_turn(under_way());
  if (calls.empty()) return "";
  return waited_too_long(calls[0].axis, rank_, seconds, *calls[0].call, timeout_, "its GPU has not ended it",
                         roll_call->who_is_where(place(calls)));
}

Place GpuWaits::place(const std::vector<GpuCall>& calls) const {
  const std::int64_t step = recorder_->step();
  if (calls.empty())
    return {fmt::format("{}a wait for its GPU, which has no call to make",
                        step > 0 ? fmt::format("step {}: ", step) : ""),
            {.step = step}};
  std::string text;
  for (std::size_t i = 0; i < std::min(calls.size(), kMostCalls); ++i)
    text += fmt::format("{}{}{}",
                        i == 0   ? ""
                        : i == 1 ? ", before "
                                 : ", ",
                        place_of(i == 0 ? step : 0, *calls[i].call, calls[i].axis, calls[i].number),
                        i == 0 ? " on its GPU" : "");
  // Groups of one axis make the same calls, but for those of the first and the last stage.
  return {text, {step, std::hash<std::string_view>{}(calls[0].axis) | 1, calls[0].number}};
}

}  // namespace transmamba
