#include "launch/traffic_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/durable_rename.h"
#include "core/metrics.h"
#include "parallel/comm/agree.h"

namespace transmamba {

void TrafficReport::add_step(double seconds) {
  ++steps_, rests_ += leaves_;  // this step waited for what the one before it had left
  leaves_ = true;
  add(seconds);
}

void TrafficReport::leave_out_step() {
  leaves_ = true;
  restart();
}

void TrafficReport::add_rest(double seconds) {
  if (leaves_ && rests_ < steps_)
    ++rests_, add(seconds);
  else
    restart();
  leaves_ = false;
}

void TrafficReport::add(double seconds) {
  seconds_ += seconds;
  for (const auto& [key, traffic] : world_.recorder().table()) traffic_[key] += traffic;
  restart();
}

TrafficSummary TrafficReport::summary() const {
  nlohmann::json mine = {{"seconds", seconds_}, {"lines", nlohmann::json::array()}};
  for (const auto& [key, t] : traffic_)
    mine["lines"].push_back({key.first, key.second, t.calls, t.bytes, t.seconds, t.exposed});
  const std::vector<std::string> all = gather_text(world_, "traffic report", mine.dump());
  world_.recorder().reset();
  TrafficSummary out{.ranks = world_.size(), .steps = steps_, .lines = {}};
  std::map<Recorder::Key, TrafficLine> lines;
  const auto steps = static_cast<double>(std::max<std::int64_t>(steps_, 1));
  const double share = 1 / (static_cast<double>(all.size()) * steps);
  for (const std::string& text : all) {
    const nlohmann::json rank = nlohmann::json::parse(text);
    out.seconds_per_step += share * rank["seconds"].get<double>();
    for (const auto& t : rank["lines"]) {
      TrafficLine& line = lines[{t[0], t[1]}];
      line.axis = t[0], line.purpose = t[1];
      line.calls += share * t[2].get<double>(), line.bytes += share * t[3].get<double>();
      line.seconds += share * t[4].get<double>(), line.exposed += share * t[5].get<double>();
      line.longest_exposed = std::max(line.longest_exposed, t[5].get<double>() / steps);
    }
  }
  for (auto& [key, line] : lines) out.lines.push_back(std::move(line));
  std::stable_sort(out.lines.begin(), out.lines.end(),
                   [](const TrafficLine& a, const TrafficLine& b) { return a.exposed > b.exposed; });
  return out;
}

std::string format_sent(double bytes) {
  if (bytes < 1 << 10) return fmt::format("{:.0f} B", bytes);
  if (bytes < 1 << 20) return fmt::format("{:.1f} KiB", bytes / (1 << 10));
  if (bytes < 100 * (1 << 20)) return fmt::format("{:.1f} MiB", bytes / (1 << 20));
  return format_bytes(static_cast<std::int64_t>(bytes));
}

std::string format_table(const TrafficSummary& summary) {
  std::string out = fmt::format("{:<7} {:<34} {:>7} {:>10} {:>9} {:>9} {:>9} {:>7}\n", "axis",
                                "communication", "calls", "sent", "ms", "exposed", "hidden", "of step");
  TrafficLine sum;
  const auto print = [&](const TrafficLine& line) {
    out += fmt::format("{:<7} {:<34} {:>7.1f} {:>10} {:>9.3f} {:>9.3f} {:>9.3f} {:>6.1f}%\n", line.axis,
                       line.purpose, line.calls, format_sent(line.bytes), 1e3 * line.seconds,
                       1e3 * line.exposed, 1e3 * (line.seconds - line.exposed),
                       summary.seconds_per_step > 0 ? 100 * line.exposed / summary.seconds_per_step : 0);
  };
  for (const TrafficLine& line : summary.lines) {
    print(line);
    sum.calls += line.calls, sum.bytes += line.bytes, sum.seconds += line.seconds,
        sum.exposed += line.exposed;
  }
  sum.axis = "all";
  print(sum);
  return out + "(a step, mean over ranks; \"of step\": the exposed part of its time)\n";
}

void write_json(const std::filesystem::path& path, const TrafficSummary& summary) {
  nlohmann::ordered_json json = {
      {"ranks", summary.ranks}, {"steps", summary.steps}, {"seconds_per_step", summary.seconds_per_step}};
  json["communication"] = nlohmann::ordered_json::array();
  for (const TrafficLine& line : summary.lines)
    json["communication"].push_back({{"axis", line.axis},
                                     {"purpose", line.purpose},
                                     {"calls_per_step", line.calls},
                                     {"bytes_per_step", line.bytes},
                                     {"seconds_per_step", line.seconds},
                                     {"exposed_seconds_per_step", line.exposed},
                                     {"hidden_seconds_per_step", line.seconds - line.exposed},
                                     {"longest_exposed_seconds_per_step", line.longest_exposed}});
  write_durably(path, json.dump(1) + "\n");
}

}  // namespace transmamba
