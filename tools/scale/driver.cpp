#include "tools/scale/driver.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/metrics.h"
#include "core/random.h"
#include "core/tokens.h"
#include "launch/child_process.h"

namespace transmamba {
namespace {

constexpr auto kWhere = "scale";

/// Of ids that stand for nothing.
class RandomTokens final : public Tokenizer {
 public:
  explicit RandomTokens(std::int64_t size) : size_(static_cast<std::int32_t>(size)) {}
  std::string name() const override { return "random"; }
  std::int32_t vocab_size() const override { return size_; }
  std::int32_t end_of_document() const override { return size_ - 1; }
  std::vector<std::int32_t> encode(std::string_view) const override { return {}; }
  std::string decode(std::span<const std::int32_t>) const override { return ""; }

 private:
  std::int32_t size_;
};

void write_text(const std::filesystem::path& file, const std::string& text) {
  std::ofstream out(file, std::ios::binary);
  out << text;
  out.close();
  check(!out.fail(), kWhere, "{}: cannot write: {}", file.string(), std::strerror(errno));
}

nlohmann::json parse_line(const std::string& text, const std::filesystem::path& file) {
  auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  check(json.is_object(), kWhere, "{}: expected JSON objects, got \"{}\"", file.string(), text);
  return json;
}

/// A run that failed says why in its result, and the sweep goes on.
void run_once(const ScaleOptions& o, const std::filesystem::path& folder, const ScaleReport& report,
              ScaleRun& run) {
  const std::filesystem::path mine = run_folder(folder, run), errors = mine / "errors.log";
  std::filesystem::remove_all(mine);  // numbers of an earlier run must not pass for this one's
  std::filesystem::create_directories(mine);
  write_text(mine / "run.cfg", run.config.to_ini());
  const ChildResult result =
      run_child(run_command_of(run, report.launcher, folder), mine / "output.log", errors, o.limit_seconds);
  if (!result.ok) {
    const std::string error = last_error(errors);
    run.failure = error.empty() ? result.ending : fmt::format("{}: {}", result.ending, error);
    return;
  }
  try {
    run.rounds.push_back(read_round(run.config, run.ranks));
  } catch (const std::exception& error) {
    run.failure = error.what();
  }
}

}  // namespace

ScaleData::ScaleData(std::vector<ScaleSize>& sizes, std::filesystem::path file) : file_(std::move(file)) {
  const auto is_there = [](const DataConfig& data) {
    if (data.path.empty()) return false;
    for (const char* more : {"", ".bin"})  // a Megatron pair may be named by its prefix
      if (std::filesystem::exists(data.path.string() + more)) return true;
    return false;
  };
  for (const ScaleSize& size : sizes)
    if (!is_there(size.config.data)) {
      const std::int64_t wanted =
          size.config.model.vocab_size > 0 ? size.config.model.vocab_size : 257;  // bytes
      vocab_size_ = vocab_size_ == 0 ? wanted : std::min(vocab_size_, wanted);
    }
  for (ScaleSize& size : sizes) {
    Config& c = size.config;
    std::int64_t vocab_size = vocab_size_;
    if (is_there(c.data)) {
      vocab_size = TokenDataset::open(c.data.path)->vocab_size();
      c.data.path = std::filesystem::absolute(c.data.path);
    } else {
      c.data.path = file_;
    }
    if (c.model.vocab_size == 0) c.model.vocab_size = vocab_size;
    check(c.model.vocab_size > 0, kWhere, "model.vocab_size: {} does not say its vocabulary size, so say it",
          c.data.path.string());
  }
}

ScaleData::~ScaleData() {
  std::error_code ignored;
  if (written_) std::filesystem::remove(file_, ignored);
}

void ScaleData::write(std::int64_t seq_len) {
  if (vocab_size_ == 0) return;
  written_ = true;
  const RandomTokens tokenizer(vocab_size_);
  TokenWriter writer(file_, tokenizer);
  std::vector<std::int32_t> tokens(
      static_cast<std::size_t>(std::max<std::int64_t>(8 * seq_len + 1, 1 << 16)));
  for (std::size_t i = 0; i < tokens.size(); ++i)
    tokens[i] =
        static_cast<std::int32_t>(static_cast<double>(vocab_size_) * uniform(1, stream_of("scale"), i));
  writer.append(Split::train, tokens);
  writer.close();
}

std::string ScaleData::in_words() const {
  return vocab_size_ > 0 ? fmt::format("random tokens of {}, where data.path names none", vocab_size_)
                         : "data.path of the configurations";
}

Round read_round(const Config& config, int ranks) {
  Round round;
  const std::filesystem::path metrics = config.log.metrics, communication = config.log.communication;
  const auto tokens = static_cast<double>(config.train.global_batch * config.train.seq_len);
  std::ifstream in(metrics);
  for (std::string line; std::getline(in, line);) {
    const nlohmann::json step = parse_line(line, metrics);
    if (!step.contains("tokens_per_second")) continue;  // a validation
    round.seconds.push_back(tokens / step["tokens_per_second"].get<double>());
    round.memory_bytes = std::max(round.memory_bytes, step["memory_bytes"].get<double>());
  }
  check(std::ssize(round.seconds) == config.train.steps, kWhere, "{}: expected {} steps, got {}",
        metrics.string(), config.train.steps, round.seconds.size());
  if (ranks == 1) return round;  // nobody to talk to
  std::ifstream table(communication);
  const nlohmann::json json = parse_line({std::istreambuf_iterator<char>(table), {}}, communication);
  for (const auto& line : json.at("communication"))
    round.exposed[line.at("axis")] += line.at("exposed_seconds_per_step").get<double>();
  return round;
}

bool run_sweep(const ScaleOptions& o, const std::filesystem::path& folder, ScaleReport& report) {
  std::vector<ScaleRun>& runs = report.sweep.runs;
  save_report(folder, report);
  for (std::int64_t round = 1; round <= o.rounds; ++round)
    for (std::size_t i = 0; i < runs.size(); ++i) {
      ScaleRun& run = runs[i];
      if (!run.impossible.empty() || !run.failure.empty() || std::ssize(run.rounds) >= round) continue;
      fmt::print("[{}/{}, round {} of {}] {}: ", i + 1, runs.size(), round, o.rounds, run.name);
      std::fflush(stdout);
      run_once(o, folder, report, run);
      if (!run.failure.empty()) {
        fmt::print("failed: {}\n", run.failure);
      } else {
        const Spread s = *run.measured(report.sweep.warmup);
        fmt::print("{:.4g} s a step ({:.4g} .. {:.4g}), predicted {:.4g}; {:.0f} tokens/s\n", s.median,
                   s.least, s.most, run.predicted->step.total(), run.tokens() / s.median);
      }
      std::fflush(stdout);
      save_report(folder, report);
    }
  return std::none_of(runs.begin(), runs.end(), [](const ScaleRun& run) { return !run.failure.empty(); });
}

}  // namespace transmamba
