#include "launch/profile_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <tuple>

#include "launch/traffic_report.h"

namespace transmamba {
namespace {

using Call = RankProfile::Call;

/// A rank that neither sends nor gets anything in an exchange does not take part in it.
bool is_silent(const Call& call) { return call.kind == "exchange" && call.size == 0; }

/// The same call on all of its ranks: ordinals count by group, purpose and, of messages, direction.
class Transfers {
 public:
  explicit Transfers(const std::vector<RankProfile>& ranks) : of_(ranks.size()) {
    for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
      std::map<Key, int> count;
      for (const Call& call : ranks[rank].calls) {
        const bool is_message = call.from >= 0;
        Key key{call.group, call.purpose, is_message ? "" : call.kind, call.from, call.to, 0};
        std::get<5>(key) = count[key]++;
        Meeting& meeting = meetings_[key];
        meeting.begin = std::max(meeting.begin, call.begin);
        if (call.kind != "send") meeting.end = std::max(meeting.end, call.end);
        if (!is_silent(call)) meeting.least = std::min(meeting.least, call.end - call.begin);
        of_[rank].push_back(&meeting);
      }
    }
  }
  double seconds(std::size_t rank, std::size_t call, const Call& is) const {
    if (is_silent(is)) return 0;
    const Meeting& meeting = *of_[rank][call];
    return is.from < 0 || is.on_gpu ? meeting.least : std::max(0.0, meeting.end - meeting.begin);
  }

 private:
  using Key = std::tuple<std::string, std::string, std::string, int, int, int>;
  struct Meeting {
    double begin = -std::numeric_limits<double>::infinity(), end = begin;
    double least = std::numeric_limits<double>::infinity();
  };
  std::map<Key, Meeting> meetings_;
  std::vector<std::vector<const Meeting*>> of_;  // by rank and call
};

/// Bytes a second; 0 for what has no link of its own.
double link_bandwidth(const Machine& machine, const ParallelConfig& p, const Call& call, std::size_t world) {
  const std::int64_t extent = call.axis == "tp"     ? p.tp
                              : call.axis == "cp"   ? p.tp * p.cp
                              : call.axis == "data" ? p.tp * p.cp * p.dp
                                                    : static_cast<std::int64_t>(world);
  const Links& links = machine.links(extent);
  const LinkCost* const link = call.kind == "all_reduce"       ? &links.all_reduce
                               : call.kind == "all_gather"     ? &links.all_gather
                               : call.kind == "reduce_scatter" ? &links.reduce_scatter
                               : call.kind == "exchange"       ? &links.exchange
                               : call.kind == "barrier"        ? nullptr
                                                               : &links.send;
  return link && link->byte > 0 ? 1 / link->byte : 0;
}

void add_calls(const std::vector<RankProfile>& ranks, const Machine& machine, const ParallelConfig& degrees,
               double share, ProfileSummary& out) {
  const Transfers transfers(ranks);
  struct Sum {
    ProfiledCalls line;
    double size = 0, bus = 0, exposed = 0;  // exposed: of the rank at hand
  };
  std::map<std::tuple<std::string, std::string, std::string>, Sum> sums;
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    for (auto& [key, sum] : sums) sum.exposed = 0;
    for (std::size_t i = 0; i < ranks[rank].calls.size(); ++i) {
      const Call& call = ranks[rank].calls[i];
      Sum& sum = sums[{call.axis, call.purpose, call.kind}];
      ProfiledCalls& line = sum.line;
      line.axis = call.axis, line.purpose = call.purpose, line.kind = call.kind;
      line.link_bandwidth = link_bandwidth(machine, degrees, call, ranks.size());
      line.calls += share, line.bytes += share * static_cast<double>(call.bytes);
      line.seconds += share * (call.end - call.begin), line.exposed += share * call.exposed;
      line.transfer += share * transfers.seconds(rank, i, call);
      sum.size += share * static_cast<double>(call.size);
      sum.bus += share * static_cast<double>(call.size) * call.bus_factor;
      sum.exposed += call.exposed * share * static_cast<double>(ranks.size());
      line.longest_exposed = std::max(line.longest_exposed, sum.exposed);
    }
  }
  for (auto& [key, sum] : sums) {
    if (sum.line.transfer > 0) {
      sum.line.algorithm_bandwidth = sum.size / sum.line.transfer;
      sum.line.bus_bandwidth = sum.bus / sum.line.transfer;
    }
    out.calls.push_back(std::move(sum.line));
  }
  std::stable_sort(out.calls.begin(), out.calls.end(),
                   [](const auto& a, const auto& b) { return a.exposed > b.exposed; });
}

void add_regions(const std::vector<RankProfile>& ranks, double share, ProfileSummary& out) {
  std::map<std::string, ProfiledRegions> sums;
  for (const RankProfile& rank : ranks)
    for (const RankProfile::Region& region : rank.regions) {
      if (!region.on_host) {
        out.exposed += share * region.exposed;
        (region.is_step ? out.rest : out.compute) += share * region.own;
      }
      if (region.is_step) {
        out.seconds += share * (region.end - region.begin);
        continue;
      }
      ProfiledRegions& sum = sums[region.family];
      sum.family = region.family, sum.on_host = region.on_host;
      sum.calls += share, sum.seconds += share * (region.end - region.begin);
      sum.exposed += share * region.exposed, sum.own += share * region.own;
    }
  for (auto& [family, sum] : sums) out.regions.push_back(std::move(sum));
  std::stable_sort(out.regions.begin(), out.regions.end(),
                   [](const auto& a, const auto& b) { return a.own > b.own; });
}

}  // namespace

ProfileSummary summarise(const std::vector<RankProfile>& ranks, std::int64_t first_step,
                         const Machine& machine, const ParallelConfig& degrees) {
  ProfileSummary out;
  out.ranks = static_cast<int>(ranks.size()), out.first_step = first_step;
  for (const RankProfile::Region& region : ranks.at(0).regions) out.steps += region.is_step;
  const double share = 1 / static_cast<double>(out.ranks * std::max<std::int64_t>(out.steps, 1));
  add_calls(ranks, machine, degrees, share, out);
  add_regions(ranks, share, out);
  out.machine = machine.name;
  for (const RankProfile& rank : ranks)
    out.clock_offsets.push_back(rank.clock_offset), out.round_trips.push_back(rank.round_trip);
  return out;
}

std::string format_table(const ProfileSummary& s) {
  const auto percent = [&](double seconds) {
    return fmt::format("{:.1f}%", s.seconds > 0 ? 100 * seconds / s.seconds : 0);
  };
  const auto rate = [](double bytes_a_second) {
    return bytes_a_second > 0 ? fmt::format("{:.3g}", 1e-9 * bytes_a_second) : std::string("-");
  };
  std::string out =
      fmt::format("profile of steps {} to {}, mean over ranks\n", s.first_step, s.first_step + s.steps - 1);
  const auto part = [&](const char* name, double seconds) {
    out += fmt::format("{:<26} {:>10.3f} ms {:>7}\n", name, 1e3 * seconds, percent(seconds));
  };
  part("a step", s.seconds), part("  computing", s.compute), part("  waiting for other ranks", s.exposed),
      part("  rest", s.rest);
  out += fmt::format("\n{:<26} {:>7} {:>10} {:>10} {:>10} {:>7}\n", "region", "calls", "ms", "own ms",
                     "waiting", "of step");
  for (const ProfiledRegions& r : s.regions)
    out += fmt::format("{:<26} {:>7.1f} {:>10.3f} {:>10.3f} {:>10.3f} {:>7}\n", r.family, r.calls,
                       1e3 * r.seconds, 1e3 * r.own, 1e3 * r.exposed, r.on_host ? "host" : percent(r.own));
  out += "(own: without regions in it and without waiting for other ranks, as \"of step\" counts)\n";
  if (s.calls.empty()) return out;
  out += fmt::format("\n{:<6} {:<31} {:<14} {:>7} {:>10} {:>9} {:>9} {:>7} {:>7} {:>7} {:>9} {:>7}\n", "axis",
                     "communication", "kind", "calls", "sent", "ms", "transfer", "alg", "bus", "of link",
                     "exposed", "of step");
  for (const ProfiledCalls& c : s.calls)
    out += fmt::format(
        "{:<6} {:<31} {:<14} {:>7.1f} {:>10} {:>9.3f} {:>9.3f} {:>7} {:>7} {:>7} {:>9.3f} {:>7}\n", c.axis,
        c.purpose, c.kind, c.calls, format_sent(c.bytes), 1e3 * c.seconds, 1e3 * c.transfer,
        rate(c.algorithm_bandwidth), rate(c.bus_bandwidth),
        c.link_bandwidth > 0 && c.bus_bandwidth > 0
            ? fmt::format("{:.1f}%", 100 * c.bus_bandwidth / c.link_bandwidth)
            : "-",
        1e3 * c.exposed, percent(c.exposed));
  return out +
         fmt::format(
             "(transfer: since all ranks of the call were there; alg, bus: GB/s of it, as nccl-tests counts; "
             "of link: bus, of what the links of {} reach)\n",
             s.machine);
}

std::string to_json(const ProfileSummary& s) {
  using Json = nlohmann::ordered_json;
  Json json = {{"ranks", s.ranks},
               {"first_step", s.first_step},
               {"steps", s.steps},
               {"seconds_per_step", s.seconds},
               {"compute_seconds_per_step", s.compute},
               {"exposed_seconds_per_step", s.exposed},
               {"rest_seconds_per_step", s.rest},
               {"machine", s.machine}};
  json["communication"] = Json::array();
  for (const ProfiledCalls& c : s.calls)
    json["communication"].push_back({{"axis", c.axis},
                                     {"purpose", c.purpose},
                                     {"kind", c.kind},
                                     {"calls_per_step", c.calls},
                                     {"bytes_per_step", c.bytes},
                                     {"seconds_per_step", c.seconds},
                                     {"transfer_seconds_per_step", c.transfer},
                                     {"exposed_seconds_per_step", c.exposed},
                                     {"longest_exposed_seconds_per_step", c.longest_exposed},
                                     {"algorithm_bytes_per_second", c.algorithm_bandwidth},
                                     {"bus_bytes_per_second", c.bus_bandwidth},
                                     {"link_bytes_per_second", c.link_bandwidth}});
  json["regions"] = Json::array();
  for (const ProfiledRegions& r : s.regions)
    json["regions"].push_back({{"family", r.family},
                               {"on_host", r.on_host},
                               {"calls_per_step", r.calls},
                               {"seconds_per_step", r.seconds},
                               {"exposed_seconds_per_step", r.exposed},
                               {"own_seconds_per_step", r.own}});
  json["clocks"] = Json::array();
  for (std::size_t rank = 0; rank < s.clock_offsets.size(); ++rank)
    json["clocks"].push_back({{"rank", rank},
                              {"offset_seconds", s.clock_offsets[rank]},
                              {"round_trip_seconds", s.round_trips[rank]}});
  return json.dump(1) + "\n";
}

}  // namespace transmamba
