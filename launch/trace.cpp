#include "launch/trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

namespace transmamba {
namespace {

constexpr int kCompute = 0, kHost = 1, kFirstAxis = 2;

std::string quoted(const std::string& text) { return nlohmann::json(text).dump(); }

class Writer {
 public:
  void name_process(std::size_t rank) {
    add(fmt::format(R"("ph":"M","pid":{},"name":"process_name","args":{{"name":"rank {}"}})", rank, rank));
    add(fmt::format(R"("ph":"M","pid":{},"name":"process_sort_index","args":{{"sort_index":{}}})", rank,
                    rank));
  }
  void name_lane(std::size_t rank, int lane, const std::string& name) {
    add(fmt::format(R"("ph":"M","pid":{},"tid":{},"name":"thread_name","args":{{"name":{}}})", rank, lane,
                    quoted(name)));
    add(fmt::format(R"("ph":"M","pid":{},"tid":{},"name":"thread_sort_index","args":{{"sort_index":{}}})",
                    rank, lane, lane));
  }
  /// Ends are rounded as beginnings are, so that what is nested stays so.
  void span(std::size_t rank, int lane, const char* category, const std::string& name, double begin,
            double end, const std::string& more) {
    const std::int64_t from = std::llround(1e9 * begin), to = std::llround(1e9 * end);
    add(fmt::format(R"("ph":"X","pid":{},"tid":{},"cat":"{}","name":{},"ts":{},"dur":{}{})", rank, lane,
                    category, quoted(name), microseconds(from), microseconds(to - from), more));
  }
  std::string finish() { return text_ + "\n]}\n"; }

 private:
  void add(const std::string& members) {
    text_ += (is_empty_ ? "\n{" : ",\n{") + members + "}";
    is_empty_ = false;
  }
  static std::string microseconds(std::int64_t nanoseconds) {
    return fmt::format("{}{}.{:03}", nanoseconds < 0 ? "-" : "", std::abs(nanoseconds) / 1000,
                       std::abs(nanoseconds) % 1000);
  }
  std::string text_ = R"({"displayTimeUnit":"ms","traceEvents":[)";
  bool is_empty_ = true;
};

/// Lanes of calls, each in the first of its axis that is free: viewers want what is in a lane to be nested.
class CallLanes {
 public:
  int of(const RankProfile::Call& call) {
    auto& lanes = axes_[call.axis];
    const auto free = std::find_if(lanes.begin(), lanes.end(),
                                   [&](const Lane& lane) { return lane.busy_until <= call.begin; });
    Lane& lane = free == lanes.end() ? lanes.emplace_back(Lane{next_++, 0}) : *free;
    lane.busy_until = call.end;
    return lane.number;
  }
  void name(Writer& writer, std::size_t rank) const {
    for (const auto& [axis, lanes] : axes_)
      for (std::size_t i = 0; i < lanes.size(); ++i)
        writer.name_lane(rank, lanes[i].number,
                         fmt::format("communication {}{}", axis, i == 0 ? "" : fmt::format(" ({})", i + 1)));
  }

 private:
  struct Lane {
    int number = 0;
    double busy_until = 0;
  };
  std::map<std::string, std::vector<Lane>> axes_;
  int next_ = kFirstAxis;
};

}  // namespace

std::string chrome_trace(const std::vector<RankProfile>& ranks) {
  Writer writer;
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    writer.name_process(rank);
    writer.name_lane(rank, kCompute, "compute");
    bool has_host = false;
    for (const RankProfile::Region& r : ranks[rank].regions) {
      writer.span(rank, r.on_host ? kHost : kCompute, r.on_host ? "host" : "compute", r.name, r.begin, r.end,
                  "");
      has_host |= r.on_host;
    }
    if (has_host) writer.name_lane(rank, kHost, "host");
    std::vector<const RankProfile::Call*> calls;
    for (const RankProfile::Call& c : ranks[rank].calls) calls.push_back(&c);
    std::stable_sort(calls.begin(), calls.end(), [](auto* a, auto* b) { return a->begin < b->begin; });
    CallLanes lanes;
    for (const RankProfile::Call* c : calls)
      writer.span(rank, lanes.of(*c), "communication", fmt::format("{} {}: {}", c->axis, c->kind, c->purpose),
                  c->begin, c->end,
                  fmt::format(R"(,"args":{{"bytes_sent":{},"size":{},"exposed_us":{:.3f}}})", c->bytes,
                              c->size, 1e6 * c->exposed));
    lanes.name(writer, rank);
  }
  return writer.finish();
}

}  // namespace transmamba
