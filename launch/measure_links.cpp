#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <limits>

#include "launch/measure.h"
#include "parallel/comm/agree.h"

namespace transmamba {
namespace {

constexpr int kRounds = 5;

/// The largest of the ranks' numbers, on all of them.
double largest(Communicator& group, double value) {
  Allocator memory;
  const Tensor shared(memory, {1}, DType::f64);
  *shared.ptr<double>() = value;
  group.all_reduce("measured", shared, Reduce::max);
  return *shared.ptr<double>();
}

LinkCost* link_of(Links& links, Call::Kind kind) {
  switch (kind) {
    case Call::Kind::all_reduce: return &links.all_reduce;
    case Call::Kind::all_gather: return &links.all_gather;
    case Call::Kind::reduce_scatter: return &links.reduce_scatter;
    case Call::Kind::exchange: return &links.exchange;
    case Call::Kind::send: return &links.send;
    default: return nullptr;  // nothing that is predicted
  }
}

double sent(const CallTime& time) {
  return buffer_factor(time.kind, time.ranks) * static_cast<double>(time.bytes);
}

/// A few sizes on a few ranks, of which one is not fitted but predicted.
Links quick_links(const Context& context, Communicator& group, bool by_copies, double seconds,
                  std::vector<FitCheck>& checks) {
  constexpr std::array<std::int64_t, 3> kSizes{1 << 10, 1 << 15, 1 << 24};
  constexpr std::int64_t kTried = 1 << 20;
  const std::int64_t most = kSizes.back() / size_of(context.dtype) + group.size();
  const CallBench bench(context, group, group, context.empty({most}), context.empty({most}), by_copies);
  std::vector<CallTime> times, tried;
  for (const Call::Kind kind : kMeasuredKinds) {
    if (kind == Call::Kind::broadcast) continue;
    for (const std::int64_t size : kSizes)
      times.push_back(bench.time(kind, bench.fitting(size), seconds, false));
    tried.push_back(bench.time(kind, bench.fitting(kTried), seconds, false));
  }
  return fit_links(times, tried, checks);
}

}  // namespace

std::vector<double> time_in_turns(Communicator& group, const std::vector<std::function<void()>>& works,
                                  const std::function<void()>& finish, double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto time = [&](const std::function<void()>& work, int runs) {
    group.barrier("bench");
    const auto start = Clock::now();
    for (int i = 0; i < runs; ++i) work();
    finish();
    return std::chrono::duration<double>(Clock::now() - start).count() / runs;
  };
  std::vector<int> runs;
  int rounds = kRounds;
  for (const auto& work : works) {
    time(work, 1);  // warm up
    const double once = std::max(largest(group, time(work, 1)), 1e-9);
    // A round is long enough for ranks that share a core to take turns in it.
    runs.push_back(static_cast<int>(std::clamp(seconds / kRounds / once, 1.0, 1e6)));
    rounds = std::min(rounds, static_cast<int>(std::clamp(std::ceil(20 * seconds / once), 1.0, 1e6)));
  }
  std::vector<double> best(works.size(), std::numeric_limits<double>::infinity());
  for (int round = 0; round < rounds; ++round)
    for (std::size_t i = 0; i < works.size(); ++i) best[i] = std::min(best[i], time(works[i], runs[i]));
  for (double& seconds_of_work : best) seconds_of_work = std::max(largest(group, seconds_of_work), 1e-9);
  return best;
}

double time_together(Communicator& group, const std::function<void()>& work, double seconds) {
  return time_in_turns(
      group, {work}, [] {}, seconds)[0];
}

Links fit_links(const std::vector<CallTime>& times, const std::vector<CallTime>& tried,
                std::vector<FitCheck>& checks) {
  Links links;
  for (const Call::Kind kind : kMeasuredKinds) {
    LinkCost* const link = link_of(links, kind);
    std::vector<std::vector<double>> rows;
    std::vector<double> seconds;
    for (const CallTime& time : times) {
      if (!link || time.kind != kind) continue;
      links.ranks = time.ranks, link->steps = ring_steps(kind, time.ranks);
      rows.push_back({link->steps, sent(time)});
      seconds.push_back(time.seconds);
      link->curve.push_back({sent(time), time.seconds});
    }
    if (rows.empty()) continue;
    const std::vector<double> found = fit(rows, seconds);
    link->latency = found[0], link->byte = found[1];
    std::sort(link->curve.begin(), link->curve.end(),
              [](const auto& a, const auto& b) { return a.bytes < b.bytes; });
  }
  for (const CallTime& time : tried)
    if (const LinkCost* const link = link_of(links, time.kind))
      checks.push_back({fmt::format("{} of {} bytes, {} ranks", to_string(time.kind), time.bytes, time.ranks),
                        time.seconds, link->seconds(sent(time), ring_steps(time.kind, time.ranks))});
  return links;
}

double off_a_line(const LinkCost& link) {
  double most = 0;
  for (const LinkCost::Point& p : link.curve)
    most = std::max(most, std::abs((link.steps * link.latency + p.bytes * link.byte) / p.seconds - 1));
  return most;
}

std::string measure_links(const Context& context, Communicator& world, const std::string& host,
                          bool by_copies, double seconds, Machine& machine, std::vector<FitCheck>& checks) {
  if (world.size() == 1) return "links between ranks: built-in numbers, as one rank measured";
  std::vector<std::string> hosts = gather_text(world, "host names", host);
  const auto lowest = std::find(hosts.begin(), hosts.end(), host) - hosts.begin();
  const auto near = world.split("host", static_cast<int>(lowest), world.rank());
  const auto first = std::count(hosts.begin(), hosts.end(), hosts[0]);
  std::sort(hosts.begin(), hosts.end());
  const auto count = std::unique(hosts.begin(), hosts.end()) - hosts.begin();
  if (near->size() > 1) machine.within_host = quick_links(context, *near, by_copies, seconds, checks);
  if (count == 1) {
    machine.ranks_per_host = std::max<std::int64_t>(machine.ranks_per_host, first);
    return fmt::format("links between {} ranks of one host; between hosts: built-in numbers", first);
  }
  machine.between_hosts = quick_links(context, world, by_copies, seconds, checks);
  machine.ranks_per_host = first;
  return fmt::format("links between {} ranks of {} hosts; within a host: {}", world.size(), count,
                     first > 1 ? fmt::format("between {} ranks", first) : "built-in numbers");
}

}  // namespace transmamba
