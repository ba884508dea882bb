#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>

#include "kernels/elementwise.h"
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

/// One kind of call at a few sizes: what it does, its ring steps, and the bytes that a rank then sends, by
/// the bytes of the whole buffer. core/machine.cpp predicts with the same.
class LinkBench {
 public:
  LinkBench(const Context& context, Communicator& group, double seconds, std::vector<FitCheck>& checks)
      : context_(context), group_(group), seconds_(seconds), checks_(checks) {}

  Links run() {
    const double n = group_.size(), part = (n - 1) / n;
    Links links;
    links.ranks = group_.size();
    links.all_reduce =
        measure("all_reduce", 2 * (n - 1), 2 * part, [&](const Tensor& x) { group_.all_reduce("bench", x); });
    links.all_gather = measure("all_gather", n - 1, part, [&](const Tensor& x) {
      group_.all_gather("bench", mine(x, group_.rank()), x);
    });
    links.reduce_scatter = measure("reduce_scatter", n - 1, part, [&](const Tensor& x) {
      group_.reduce_scatter("bench", x, mine(x, group_.rank()));
    });
    links.exchange = measure("exchange", 1, part, [&](const Tensor& x) { exchange(x); });
    constexpr Lane kRing{"bench", 1};
    group_.open_lanes({&kRing, 1});
    links.send = measure("send", 1, 1, [&](const Tensor& x) { pass_on(x); });
    return links;
  }

 private:
  Tensor mine(const Tensor& x, int rank) const {
    const std::int64_t each = x.numel() / group_.size();
    return x.slice(0, rank * each, (rank + 1) * each);
  }
  /// As ranks swap keys and values: every other rank gets this rank's part.
  void exchange(const Tensor& x) {
    std::vector<Outgoing> outgoing;
    std::vector<Incoming> incoming;
    for (int peer = 0; peer < group_.size(); ++peer) {
      if (peer == group_.rank()) continue;
      outgoing.push_back({peer, mine(x, group_.rank())});
      incoming.push_back({peer, mine(x, peer)});
    }
    group_.exchange("bench", outgoing, incoming);
  }
  /// Round the ring, all at once.
  void pass_on(const Tensor& x) {
    const int n = group_.size(), rank = group_.rank();
    const Tensor received = context_.empty(x.shape());
    Pending sending = group_.start_send("bench", x, (rank + 1) % n, 0);
    group_.receive("bench", received, (rank + n - 1) % n, 0);
    sending.wait();
  }

  template <class F>
  LinkCost measure(const char* name, double steps, double sent, F&& call) {
    // The third size is not fitted but predicted.
    constexpr std::array<std::int64_t, 4> kSizes{1 << 10, 1 << 15, 1 << 20, 1 << 24};
    std::vector<std::vector<double>> rows;
    std::vector<double> seconds;
    FitCheck check;
    double checked = 0;
    for (const std::int64_t size : kSizes) {
      const std::int64_t element = size_of(context_.dtype), n = group_.size();
      const Tensor x = context_.empty({(size / element + n - 1) / n * n});
      fill({.value = 0, .y = x}, context_.stream);  // a sum of sums of .. must not overflow
      const double bytes = sent * static_cast<double>(x.numel() * element);
      const double measured = time_together(
          group_, [&] { call(x), synchronize(context_); }, seconds_);
      if (size == kSizes[2]) {
        check = {fmt::format("{} of 1 MiB, {} ranks", name, n), measured, 0};
        checked = bytes;
      } else {
        rows.push_back({steps, bytes});
        seconds.push_back(measured);
      }
    }
    const std::vector<double> found = fit(rows, seconds);
    check.predicted = steps * found[0] + checked * found[1];
    checks_.push_back(check);
    return {found[0], found[1]};
  }

  const Context& context_;
  Communicator& group_;
  double seconds_;
  std::vector<FitCheck>& checks_;
};

}  // namespace

double time_together(Communicator& group, const std::function<void()>& work, double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto time = [&](int runs) {
    group.barrier("bench");
    const auto start = Clock::now();
    for (int i = 0; i < runs; ++i) work();
    return std::chrono::duration<double>(Clock::now() - start).count() / runs;
  };
  time(1);  // warm up
  const double once = std::max(largest(group, time(1)), 1e-9);
  // A round is long enough for ranks that share a core to take turns in it.
  const int runs = static_cast<int>(std::clamp(seconds / kRounds / once, 1.0, 1e6));
  const int rounds = static_cast<int>(std::clamp(std::ceil(20 * seconds / once), 1.0, double{kRounds}));
  double best = time(runs);
  for (int round = 1; round < rounds; ++round) best = std::min(best, time(runs));
  return std::max(largest(group, best), 1e-9);
}

std::string measure_links(const Context& context, Communicator& world, const std::string& host,
                          double seconds, Machine& machine, std::vector<FitCheck>& checks) {
  if (world.size() == 1) return "links between ranks: built-in numbers, as one rank measured";
  std::vector<std::string> hosts = gather_text(world, "host names", host);
  const auto lowest = std::find(hosts.begin(), hosts.end(), host) - hosts.begin();
  const auto near = world.split("host", static_cast<int>(lowest), world.rank());
  const auto first = std::count(hosts.begin(), hosts.end(), hosts[0]);
  std::sort(hosts.begin(), hosts.end());
  const auto count = std::unique(hosts.begin(), hosts.end()) - hosts.begin();
  if (near->size() > 1) machine.within_host = LinkBench(context, *near, seconds, checks).run();
  if (count == 1) {
    machine.ranks_per_host = std::max<std::int64_t>(machine.ranks_per_host, first);
    return fmt::format("links between {} ranks of one host; between hosts: built-in numbers", first);
  }
  machine.between_hosts = LinkBench(context, world, seconds, checks).run();
  machine.ranks_per_host = first;
  return fmt::format("links between {} ranks of {} hosts; within a host: {}", world.size(), count,
                     first > 1 ? fmt::format("between {} ranks", first) : "built-in numbers");
}

}  // namespace transmamba
