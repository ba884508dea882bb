#include "core/transpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <string_view>

namespace transmamba {
namespace {

constexpr auto kWhere = "transpoint";
constexpr std::int64_t kPaperLength = 8192;  // the sequence length for which the named schedules were made

struct Schedule {
  std::string_view name, points;
};
constexpr std::array kSchedules{
    Schedule{"V1", "2048"},
    Schedule{"V2", "4096"},
    Schedule{"V3", "6144"},
    Schedule{"V4", "3072,4096,5120"},
    Schedule{"V5", "2048,3072,4096"},
    Schedule{"V6", "512,1024,2048"},
    Schedule{"V7", "2048,4096,6144"},
    Schedule{"V8", "0,1024,2048,6144,8192"},
    Schedule{"V9", "0,128,256,512,1024,2048,4096,8192"},
    Schedule{"transformer", "T"},
    Schedule{"mamba", "0"},
    Schedule{"hybrid", "0,T"},
};

std::vector<std::string_view> split_at_commas(std::string_view list) {
  std::vector<std::string_view> items;
  for (;;) {
    const std::size_t comma = list.find(',');
    std::string_view item = list.substr(0, comma);
    item.remove_prefix(std::min(item.find_first_not_of(" \t"), item.size()));
    item = item.substr(0, item.find_last_not_of(" \t") + 1);
    items.push_back(item);
    if (comma == std::string_view::npos) return items;
    list.remove_prefix(comma + 1);
  }
}

template <class T>
bool parse_number(std::string_view text, T& value) {
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && stop == end;
}

}  // namespace

std::vector<std::int64_t> resolve_transpoints(const ModelConfig& model, std::int64_t seq_len,
                                              std::int64_t length) {
  check(seq_len > 0 && length > 0, kWhere, "expected sequence lengths above 0, got {} and {}", seq_len,
        length);
  const bool fraction = model.transpoint_unit == "fraction";
  check(fraction || model.transpoint_unit == "token", kWhere,
        "model.transpoint_unit: expected one of token, fraction, got \"{}\"", model.transpoint_unit);

  const auto named = std::find_if(kSchedules.begin(), kSchedules.end(),
                                  [&](const Schedule& s) { return s.name == model.transpoints; });
  const bool is_named = named != kSchedules.end();

  std::vector<std::int64_t> cycle;
  for (std::string_view item : split_at_commas(is_named ? named->points : model.transpoints)) {
    const auto reject = [&] {
      std::vector<std::string_view> names;
      for (const Schedule& schedule : kSchedules) names.push_back(schedule.name);
      fail(kWhere,
           "model.transpoints = \"{}\": expected one of {}, or {} and T with commas between, got \"{}\"",
           model.transpoints, fmt::join(names, ", "),
           fraction ? "fractions of seq_len from 0 to 1" : "token counts of at least 0", item);
    };
    std::int64_t tokens = 0;
    if (item == "T") {
      tokens = length;
    } else if (fraction && !is_named) {
      double part = 0;
      if (!parse_number(item, part) || !(part >= 0 && part <= 1)) reject();
      tokens = std::llround(part * static_cast<double>(seq_len));
    } else {
      if (!parse_number(item, tokens) || tokens < 0) reject();
      if (fraction) tokens = (tokens * seq_len + kPaperLength / 2) / kPaperLength;
    }
    if (fraction && tokens == seq_len) tokens = length;  // all of it
    cycle.push_back(std::min(tokens, length));
  }

  std::vector<std::int64_t> transpoints(static_cast<std::size_t>(model.num_mixers()));
  for (std::size_t i = 0; i < transpoints.size(); ++i) transpoints[i] = cycle[i % cycle.size()];
  return transpoints;
}

}  // namespace transmamba
