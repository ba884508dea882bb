// Reads keys of nested JSON objects that people or other programs wrote, and knows the whole name of each for
// messages.
#pragma once

#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "kernels/check.h"

namespace transmamba {

class JsonReader {
 public:
  using Json = nlohmann::ordered_json;
  /// For messages: who reads, which file, and what to tell those who miss a key ("; do ..").
  struct Origin {
    std::string where, file, hint;
  };

  JsonReader(const Json& json, Origin origin, std::string path = "")
      : json_(json), origin_(std::move(origin)), path_(std::move(path)) {
    check(json_.is_object(), origin_.where, "{}: {}expected a JSON object", origin_.file,
          path_.empty() ? "" : path_ + ": ");
  }

  bool has(const std::string& key) const { return json_.contains(key); }
  JsonReader at(const std::string& key) const { return {value(key), origin_, name(key)}; }
  void read(const std::string& key, double& out) const {
    const Json& v = value(key);
    check(v.is_number() && std::isfinite(v.get<double>()) && v.get<double>() >= 0, origin_.where,
          "{}: {}: expected a number of at least 0, got {}", origin_.file, name(key), v.dump());
    out = v.get<double>();
  }
  void read(const std::string& key, std::int64_t& out) const {
    const Json& v = value(key);
    check(v.is_number_integer() && v.get<std::int64_t>() >= 1, origin_.where,
          "{}: {}: expected an integer of at least 1, got {}", origin_.file, name(key), v.dump());
    out = v.get<std::int64_t>();
  }
  void read(const std::string& key, std::string& out) const {
    const Json& v = value(key);
    check(v.is_string(), origin_.where, "{}: {}: expected text, got {}", origin_.file, name(key), v.dump());
    out = v.get<std::string>();
  }
  /// [[x, y], ..] with rising x >= 0 and y > 0.
  void read(const std::string& key, std::vector<std::pair<double, double>>& out) const {
    const Json& list = value(key);
    double last = -1;
    for (const Json& point : list) {
      const bool is_pair = list.is_array() && point.is_array() && point.size() == 2 && point[0].is_number() &&
                           point[1].is_number();
      const double x = is_pair ? point[0].get<double>() : 0, y = is_pair ? point[1].get<double>() : 0;
      check(is_pair && x > last && y > 0 && std::isfinite(x) && std::isfinite(y), origin_.where,
            "{}: {}: expected a list of pairs of numbers, the first rising, the second above 0, got {}",
            origin_.file, name(key), point.dump());
      out.emplace_back(x, y), last = x;
    }
  }
  /// Above 0, as something is divided by it.
  double positive(const std::string& key) const {
    double out = 0;
    read(key, out);
    check(out > 0, origin_.where, "{}: {}: expected a number above 0, got {}", origin_.file, name(key), out);
    return out;
  }

 private:
  std::string name(const std::string& key) const { return path_.empty() ? key : path_ + "." + key; }
  const Json& value(const std::string& key) const {
    check(json_.contains(key), origin_.where, "{}: {} is missing{}", origin_.file, name(key), origin_.hint);
    return json_.at(key);
  }
  const Json& json_;
  Origin origin_;
  std::string path_;
};

}  // namespace transmamba
