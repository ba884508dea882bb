#include "tools/scale/options.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <map>
#include <sstream>

#include "kernels/check.h"

namespace transmamba {

const char* const kScaleUsage =
    "usage: transmamba scale CONFIG --ranks 1,2,.. [--axis dp|tp|cp|pp|all] [...] [--section.key value ...]\n"
    "       transmamba scale CONFIG --cluster FILE [...]\n\n"
    "Trains a few steps on each number of ranks, started by itself, and writes what it measured beside what\n"
    "the plan predicts: scale.json, and scale.html with plots. Do not start it by mpirun.\n\n"
    "  --ranks LIST      numbers of ranks, ascending\n"
    "  --axis LIST       axes that take all ranks, each alone: dp (default), tp, cp, pp; all: these four\n"
    "  --mesh tp=2,cp=2  a mixed mesh, to which dp ranks are added; may be given several times\n"
    "  --mode MODE       strong (default): the same batch on more ranks; weak: the batch, or for cp the "
    "length "
    "of\n"
    "                    sequences, grows with them; both\n"
    "  --sizes LIST      models, by commas: CONFIG files, or keys: num_layers=24,64 or\n"
    "                    num_layers=24+hidden_size=512,num_layers=64 (section model, where none is said)\n"
    "  --steps N         of a run (default 8), the first 3 of which (--warmup N) do not count\n"
    "  --rounds N        go through all runs so often (default 1), so that slow changes of a machine meet "
    "all\n"
    "  --launcher WORDS  what starts a run (default \"mpirun -np {ranks}\", under SLURM \"srun -n "
    "{ranks}\")\n"
    "  --limit SECONDS   after which a run is ended (default 1800)\n"
    "  --machine FILE    of `transmamba bench --quick`, for predictions; the same as --parallel.machine\n"
    "  --memory GIB      what a rank has: runs planned to need more are left out\n"
    "  --cluster FILE    predict runs on all of a described cluster too; configs/clusters has examples\n"
    "  --output DIR      where to write (default scale-results)\n"
    "  --resume          keep what DIR/scale.json has of the same runs, and do the rest\n"
    "  --dry-run         print the runs and their predictions\n\n"
    "Data is data.path's, or random tokens where that is not there. `transmamba train --help` lists the "
    "keys.\n";

namespace {

constexpr auto kWhere = "scale";

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, separator);) parts.push_back(part);
  if (text.empty() || text.back() == separator) parts.emplace_back();
  return parts;
}

std::int64_t parse_count(const std::string& what, const std::string& text, std::int64_t least) {
  std::int64_t count = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, count);
  check(error == std::errc() && stop == end && count >= least && count <= 1 << 20, kWhere,
        "{}: expected an integer of at least {}, got \"{}\"", what, least, text);
  return count;
}

double parse_positive(const std::string& what, const std::string& text) {
  double number = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  check(error == std::errc() && stop == end && std::isfinite(number) && number > 0, kWhere,
        "{}: expected a number above 0, got \"{}\"", what, text);
  return number;
}

std::vector<int> parse_ranks(const std::string& text) {
  std::vector<int> ranks;
  for (const std::string& word : split(text, ',')) {
    ranks.push_back(static_cast<int>(parse_count("--ranks", word, 1)));
    check(ranks.size() == 1 || ranks.back() > ranks[ranks.size() - 2], kWhere,
          "--ranks: expected ascending integers, such as 1,2,4, got \"{}\"", text);
  }
  return ranks;
}

std::vector<ScaleSeries> parse_axes(const std::string& text) {
  std::vector<ScaleSeries> series;
  for (const std::string& axis : split(text == "all" ? "dp,tp,cp,pp" : text, ',')) {
    check(axis == "dp" || axis == "tp" || axis == "cp" || axis == "pp", kWhere,
          "--axis: expected all, or some of dp, tp, cp, pp, got \"{}\"", text);
    series.push_back({axis, axis, 1, 1, 1});
  }
  return series;
}

ScaleSeries parse_mesh(const std::string& text) {
  ScaleSeries mesh{text, "", 1, 1, 1};
  std::map<std::string, std::int64_t*> degrees{{"tp", &mesh.tp}, {"cp", &mesh.cp}, {"pp", &mesh.pp}};
  for (const std::string& word : split(text, ',')) {
    const std::size_t equals = word.find('=');
    const auto degree = degrees.find(word.substr(0, equals));
    check(equals != std::string::npos && degree != degrees.end(), kWhere,
          "--mesh: expected degrees of tp, cp and pp such as tp=2,cp=2 (dp takes what remains), got \"{}\"",
          text);
    *degree->second = parse_count("--mesh " + word, word.substr(equals + 1), 1);
    degrees.erase(degree);  // given twice, it is unknown
  }
  return mesh;
}

std::vector<std::string> parse_modes(const std::string& text) {
  check(text == "strong" || text == "weak" || text == "both", kWhere,
        "--mode: expected one of strong, weak, both, got \"{}\"", text);
  return text == "both" ? std::vector<std::string>{"strong", "weak"} : std::vector<std::string>{text};
}

std::vector<std::string> parse_launcher(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> words;
  for (std::string word; in >> word;) words.push_back(word);
  check(!words.empty() && text.find("{ranks}") != std::string::npos, kWhere,
        "--launcher: expected a command with {{ranks}} in it, such as \"mpirun -np {{ranks}}\", got \"{}\"",
        text);
  return words;
}

void check_together(const ScaleOptions& o) {
  check(!o.ranks.empty() || !o.cluster.empty(), kWhere,
        "expected --ranks LIST, the numbers of ranks to measure, or --cluster FILE, what to predict for");
  check(o.warmup < o.steps, kWhere, "--warmup: expected fewer steps than --steps = {}, got {}", o.steps,
        o.warmup);
  std::vector<std::string> names;
  for (const ScaleSeries& series : o.series) names.push_back(series.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  check(twice == names.end(), kWhere, "--axis and --mesh: {} is given twice",
        twice == names.end() ? "" : *twice);
}

}  // namespace

ScaleOptions parse_scale_options(const std::vector<std::string>& words) {
  ScaleOptions o;
  o.config = words.at(0);
  o.modes = {"strong"};
  o.launcher = parse_launcher(std::getenv("SLURM_JOB_ID") ? "srun -n {ranks}" : "mpirun -np {ranks}");
  std::vector<ScaleSeries> axes, meshes;
  std::map<std::string, std::string> seen;
  const std::map<std::string, std::function<void(const std::string&)>> with_value{
      {"--ranks", [&](const std::string& v) { o.ranks = parse_ranks(v); }},
      {"--axis", [&](const std::string& v) { axes = parse_axes(v); }},
      {"--mesh", [&](const std::string& v) { meshes.push_back(parse_mesh(v)); }},
      {"--mode", [&](const std::string& v) { o.modes = parse_modes(v); }},
      {"--sizes", [&](const std::string& v) { o.sizes = split(v, ','); }},
      {"--steps", [&](const std::string& v) { o.steps = parse_count("--steps", v, 1); }},
      {"--warmup", [&](const std::string& v) { o.warmup = parse_count("--warmup", v, 0); }},
      {"--rounds", [&](const std::string& v) { o.rounds = parse_count("--rounds", v, 1); }},
      {"--launcher", [&](const std::string& v) { o.launcher = parse_launcher(v); }},
      {"--limit", [&](const std::string& v) { o.limit_seconds = parse_positive("--limit", v); }},
      {"--machine",
       [&](const std::string& v) {
         o.overrides.insert(o.overrides.end(), {"--parallel.machine", v});
       }},
      {"--memory", [&](const std::string& v) { o.memory_gib = parse_positive("--memory", v); }},
      {"--cluster", [&](const std::string& v) { o.cluster = v; }},
      {"--output", [&](const std::string& v) { o.output = v; }}};
  for (std::size_t i = 1; i < words.size(); ++i) {
    const std::string name = words[i].substr(0, words[i].find('='));
    if (name == "--resume" || name == "--dry-run") {
      check(name == words[i], kWhere, "{}: expected no value, got \"{}\"", name, words[i]);
      (name == "--resume" ? o.resume : o.dry_run) = true;
    } else if (const auto option = with_value.find(name); option != with_value.end()) {
      const bool beside = name.size() < words[i].size();
      check(beside || (i + 1 < words.size() && !words[i + 1].starts_with("--")), kWhere, "{} needs a value",
            name);
      check(name == "--mesh" || seen.emplace(name, "").second, kWhere, "{} is given twice", name);
      option->second(beside ? words[i].substr(name.size() + 1) : words[++i]);
    } else {
      check(!name.starts_with("--") || name.find('.') != std::string::npos, kWhere,
            "unknown option {}: `transmamba scale --help` lists them", name);
      o.overrides.push_back(words[i]);
    }
  }
  o.series = axes.empty() && meshes.empty() ? parse_axes("dp") : axes;
  o.series.insert(o.series.end(), meshes.begin(), meshes.end());
  check_together(o);
  return o;
}

namespace {

/// "num_layers=24+train.seq_len=512" as words of the command line.
std::vector<std::string> size_words(const std::string& size) {
  std::vector<std::string> words;
  for (const std::string& part : split(size, '+')) {
    const std::string key = part.substr(0, part.find('='));
    check(key.size() + 1 < part.size(), kWhere, "--sizes: expected key=value, got \"{}\"", part);
    words.push_back(fmt::format("--{}{}", key.find('.') == std::string::npos ? "model." : "", part));
  }
  return words;
}

std::string file_name(std::string name) {
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c)) &&
        std::string_view("=+-._").find(c) == std::string_view::npos)
      c = '_';
  return name;
}

}  // namespace

std::vector<ScaleSize> scale_sizes(const ScaleOptions& o) {
  std::vector<ScaleSize> sizes;
  const auto add = [&](const std::string& name, const std::string& file, std::vector<std::string> words) {
    words.insert(words.end(), o.overrides.begin(), o.overrides.end());
    sizes.push_back({file_name(name), parse_config(file, words)});
    sizes.back().config.validate_training();
  };
  if (o.sizes.empty()) add(std::filesystem::path(o.config).stem(), o.config, {});
  std::string key;  // of the item before, of which a plain word is a further value
  for (const std::string& item : o.sizes) {
    const std::size_t equals = item.find('=');
    const bool is_file = equals == std::string::npos && (key.empty() || item.ends_with(".cfg"));
    if (is_file) {
      add(std::filesystem::path(item).stem(), item, {});
      key.clear();
      continue;
    }
    const std::string size = equals == std::string::npos ? fmt::format("{}={}", key, item) : item;
    key = size.find('+') == std::string::npos ? size.substr(0, size.find('=')) : "";
    add(size, o.config, size_words(size));
  }
  for (std::size_t i = 0; i < sizes.size(); ++i)
    for (std::size_t j = 0; j < i; ++j)
      check(sizes[i].name != sizes[j].name, kWhere, "--sizes: {} is given twice", sizes[i].name);
  return sizes;
}

}  // namespace transmamba
