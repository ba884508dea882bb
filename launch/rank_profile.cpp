#include "launch/rank_profile.h"

#include <cmath>
#include <nlohmann/json.hpp>

namespace transmamba {
namespace {

using Json = nlohmann::json;

std::int64_t nanoseconds(double seconds) { return std::llround(1e9 * seconds); }
double seconds(const Json& nanoseconds) { return 1e-9 * nanoseconds.get<double>(); }

}  // namespace

RankProfile rank_profile(const Profile& profile, const std::function<double(double)>& place) {
  RankProfile out;
  for (const RegionSpan& r : profile.regions()) {
    const bool is_step = *r.family == '\0';
    out.regions.push_back({is_step ? r.first.of : r.family, name_of(r), is_step, r.on_host,
                           place(r.begin.seconds), place(r.end.seconds), r.exposed, r.own()});
  }
  for (const auto& c : profile.calls())
    out.calls.push_back({c->axis, std::string(c->purpose), c->kind, c->group, c->from, c->to, c->bytes,
                         c->size, c->bus_factor, place(c->begin.seconds), place(c->end.seconds), c->exposed,
                         c->is_on_gpu()});
  return out;
}

std::string RankProfile::to_text() const {
  Json json{{"offset", clock_offset}, {"round_trip", round_trip}};
  Json &r = json["regions"] = Json::array(), &c = json["calls"] = Json::array();
  for (const Region& x : regions)
    r.push_back({x.family, x.name, x.is_step, x.on_host, nanoseconds(x.begin), nanoseconds(x.end),
                 nanoseconds(x.exposed), nanoseconds(x.own)});
  for (const Call& x : calls)
    c.push_back({x.axis, x.purpose, x.kind, x.group, x.from, x.to, x.bytes, x.size, x.bus_factor,
                 nanoseconds(x.begin), nanoseconds(x.end), nanoseconds(x.exposed), x.on_gpu});
  return json.dump();
}

RankProfile RankProfile::from_text(const std::string& text) {
  const Json json = Json::parse(text);
  RankProfile out;
  out.clock_offset = json["offset"], out.round_trip = json["round_trip"];
  for (const Json& x : json["regions"])
    out.regions.push_back(
        {x[0], x[1], x[2], x[3], seconds(x[4]), seconds(x[5]), seconds(x[6]), seconds(x[7])});
  for (const Json& x : json["calls"])
    out.calls.push_back({x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7], x[8], seconds(x[9]), seconds(x[10]),
                         seconds(x[11]), x[12]});
  return out;
}

}  // namespace transmamba
