#include "core/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <cmath>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>
#include <system_error>

#include "core/config_keys.h"
#include "core/transpoint.h"

namespace transmamba {
namespace {

namespace po = boost::program_options;
constexpr auto kWhere = "config";
constexpr auto kCommandLine = "command line";

po::options_description make_options() {
  po::options_description options;
  for (const ConfigKey& key : config_keys())
    options.add_options()(key.name.c_str(), po::value<std::string>(), key.help.c_str());
  return options;
}

void assign(Config& config, const std::string& name, const std::string& value, const std::string& origin) {
  const ConfigKey* key = find_config_key(name);
  if (key == nullptr) fail(kWhere, "unknown key {} ({}): {}", name, origin, suggest_config_key(name));
  check(key->assign(config, value) && key->within(config), kWhere, "{} ({}): expected {}, got \"{}\"", name,
        origin, key->allowed, value);
}

/// Boost's parser knows # comments only.
std::string without_semicolon_comments(const std::string& ini) {
  std::istringstream in(ini);
  std::string out;
  for (std::string line; std::getline(in, line);) out += line.substr(0, line.find(';')) + "\n";
  return out;
}

void apply_ini(Config& config, const std::string& ini, const std::string& origin) {
  check(ini.find('\0') == std::string::npos, kWhere, "{} is not a text file", origin);
  std::istringstream in(without_semicolon_comments(ini));
  std::vector<po::option> options;
  try {
    // Unregistered keys pass, so that `assign` can name the nearest known one.
    options = po::parse_config_file(in, make_options(), /*allow_unregistered=*/true).options;
  } catch (const po::error& error) {
    fail(kWhere, "{}: expected [section], key = value or a comment: {}", origin, error.what());
  }
  std::set<std::string> seen;
  for (const po::option& option : options) {
    check(seen.insert(option.string_key).second, kWhere, "{} is given twice in {}", option.string_key,
          origin);
    assign(config, option.string_key, option.value.empty() ? "" : option.value.front(), origin);
  }
}

void apply_words(Config& config, const std::vector<std::string>& words) {
  // Long options only: no guessing from a prefix, and "-1" is a value and never a short option.
  using namespace po::command_line_style;
  const int style = allow_long | long_allow_adjacent | long_allow_next;
  std::vector<po::option> options;
  const po::options_description known = make_options();
  try {
    options = po::command_line_parser(words).options(known).style(style).allow_unregistered().run().options;
  } catch (const po::error& error) {
    fail(kWhere, "{}: expected --section.key value: {}", kCommandLine, error.what());
  }
  std::set<std::string> seen;
  for (const po::option& option : options) {
    if (option.string_key.empty())
      fail(kWhere, "{}: expected --section.key value, got the word \"{}\"", kCommandLine,
           option.original_tokens.empty() ? "" : option.original_tokens.front());
    const std::string value = option.value.empty() ? "" : option.value.front();
    // "--a --b 1": Boost takes "--b" as the value of a. As "--a=--b" it is meant.
    const bool swallowed = option.original_tokens.size() > 1 && value.starts_with("--");
    check(option.unregistered || !swallowed, kWhere, "{} ({}): needs a value, got \"{}\"", option.string_key,
          kCommandLine, value);
    check(seen.insert(option.string_key).second, kWhere, "{} is given twice on the {}", option.string_key,
          kCommandLine);
    assign(config, option.string_key, value, kCommandLine);
  }
}

std::string read_file(const std::filesystem::path& file) {
  std::error_code error;
  const auto status = std::filesystem::status(file, error);
  check(std::filesystem::exists(status), kWhere, "no configuration file {}", file.string());
  check(!std::filesystem::is_directory(status), kWhere, "expected a configuration file, got the folder {}",
        file.string());
  std::ifstream in(file, std::ios::binary);
  check(in.is_open(), kWhere, "cannot read the configuration file {}", file.string());
  std::string text{std::istreambuf_iterator<char>(in), {}};
  check(!in.bad(), kWhere, "cannot read the configuration file {}", file.string());
  return text;
}

/// Head counts around `config`'s by which hidden_size can be shared out, for a message.
std::string working_head_counts(const ModelConfig& model) {
  const bool even = model.qk_head_dim == 0;  // the share becomes qk_head_dim, which RoPE wants even
  const auto works = [&](std::int64_t heads) {
    return model.hidden_size % heads == 0 && (!even || model.hidden_size / heads % 2 == 0);
  };
  std::vector<std::int64_t> found;
  for (std::int64_t heads = std::min(model.num_heads, model.hidden_size); heads >= 1 && found.empty();
       --heads)
    if (works(heads)) found.push_back(heads);
  const std::size_t below = found.size();
  for (auto heads = model.num_heads + 1; heads <= model.hidden_size && found.size() == below; ++heads)
    if (works(heads)) found.push_back(heads);
  if (found.empty()) return "no num_heads would do, as hidden_size is odd and qk_head_dim must be even";
  return fmt::format("the nearest num_heads that would do: {}; or give qk_head_dim and v_head_dim",
                     fmt::join(found, " and "));
}

Config parse(const std::string& ini, const std::string& origin, const std::vector<std::string>& overrides) {
  Config config;
  apply_ini(config, ini, origin);
  apply_words(config, overrides);
  config.resolve();
  config.validate();
  return config;
}

}  // namespace

char ModelConfig::kind(std::int64_t layer) const {
  return layer_pattern.at(static_cast<std::size_t>(layer) % layer_pattern.size());
}

std::int64_t ModelConfig::num_mixers() const {
  std::int64_t count = 0;
  for (std::int64_t layer = 0; layer < num_layers; ++layer) count += kind(layer) == 'T';
  return count;
}

double ModelConfig::output_init_std() const {
  return init_std / std::sqrt(2.0 * static_cast<double>(num_layers));
}

void Config::resolve() {
  const bool shares = model.qk_head_dim == 0 || model.v_head_dim == 0;
  check(!shares || (model.num_heads > 0 && model.hidden_size > 0), kWhere,
        "model.hidden_size and model.num_heads must be above 0, got {} and {}", model.hidden_size,
        model.num_heads);
  if (shares && model.hidden_size % model.num_heads != 0)
    fail(kWhere,
         "model.hidden_size = {} is not divisible by model.num_heads = {}, and model.{} = 0 asks for the "
         "quotient; {}",
         model.hidden_size, model.num_heads, model.qk_head_dim == 0 ? "qk_head_dim" : "v_head_dim",
         working_head_counts(model));
  const std::int64_t share = shares ? model.hidden_size / model.num_heads : 0;
  if (model.qk_head_dim == 0 && share % 2 != 0)
    fail(kWhere,
         "model.qk_head_dim must be even (RoPE pairs dimensions), but model.hidden_size / model.num_heads "
         "= {} / {} = {}; {}",
         model.hidden_size, model.num_heads, share, working_head_counts(model));
  if (model.qk_head_dim == 0) model.qk_head_dim = share;
  if (model.v_head_dim == 0) model.v_head_dim = share;
  if (model.ffn_hidden_size == 0) {
    const std::int64_t width = (8 * model.hidden_size + 2) / 3;
    model.ffn_hidden_size = (width + 63) / 64 * 64;
  }
}

void Config::validate() const {
  for (const ConfigKey& key : config_keys())
    check(key.within(*this), kWhere, "{}: expected {}, got \"{}\"", key.name, key.allowed, key.print(*this));

  check(model.qk_head_dim > 0 && model.v_head_dim > 0 && model.ffn_hidden_size > 0, kWhere,
        "model.qk_head_dim = {}, model.v_head_dim = {} and model.ffn_hidden_size = {} must be above 0 here: "
        "resolve() makes numbers of zeros",
        model.qk_head_dim, model.v_head_dim, model.ffn_hidden_size);
  check(model.qk_head_dim % 2 == 0, kWhere,
        "model.qk_head_dim: expected an even number (RoPE pairs dimensions), got {}", model.qk_head_dim);
  resolve_transpoints(model, train.seq_len);

  check(train.global_batch % train.micro_batch == 0, kWhere,
        "train.global_batch = {} is not a multiple of train.micro_batch = {}", train.global_batch,
        train.micro_batch);
  check(train.dtype != "bfloat16" || train.device == "cuda", kWhere,
        "train.dtype = bfloat16 needs train.device = cuda, got {}; float32 and float64 run anywhere",
        train.device);
  check(checkpoint.resume != "auto" || !checkpoint.path.empty(), kWhere,
        "checkpoint.resume = auto needs checkpoint.path, the folder to look in");
  check(checkpoint.every == 0 || !checkpoint.path.empty(), kWhere,
        "checkpoint.every = {} needs checkpoint.path, the folder to write to", checkpoint.every);
}

void Config::validate_training() const {
  check(model.num_mixers() > 0, kWhere,
        "model.layer_pattern = \"{}\" over model.num_layers = {} has no mixer; at least one T is needed",
        model.layer_pattern, model.num_layers);
  // The widths of kernels/cuda/ssd_bf16.cuh.
  const auto has_kernel = [](std::int64_t width) { return width == 64 || width == 96 || width == 128; };
  check(train.dtype != "bfloat16" || (has_kernel(model.qk_head_dim) && has_kernel(model.v_head_dim)), kWhere,
        "train.dtype = bfloat16 has kernels for heads of 64, 96 and 128, got model.qk_head_dim = {} and "
        "model.v_head_dim = {} (0: hidden_size / num_heads); train.dtype = float32 takes any",
        model.qk_head_dim, model.v_head_dim);
  check(optimizer.warmup_steps <= train.steps, kWhere,
        "optimizer.warmup_steps = {} is more than train.steps = {}", optimizer.warmup_steps, train.steps);
  check(optimizer.min_lr <= optimizer.lr, kWhere, "optimizer.min_lr = {} is above optimizer.lr = {}",
        optimizer.min_lr, optimizer.lr);
  check(log.profile == 0 || log.profile + LogConfig::kProfileWarmUp <= train.steps, kWhere,
        "log.profile = {}: the first {} steps warm up, so with train.steps = {} expected at most {}",
        log.profile, LogConfig::kProfileWarmUp, train.steps,
        std::max<std::int64_t>(train.steps - LogConfig::kProfileWarmUp, 0));
}

std::string Config::to_ini() const {
  std::string out, section;
  for (const ConfigKey& key : config_keys()) {
    if (key.section() == "fault" && fault == FaultConfig()) continue;  // for tests: no run need show it
    if (section != key.section()) {
      out += fmt::format("{}[{}]\n", out.empty() ? "" : "\n", key.section());
      section = key.section();
    }
    const std::string value = key.print(*this);
    out += fmt::format("{} ={}{}\n", key.key(), value.empty() ? "" : " ", value);
  }
  return out;
}

Config parse_config(const std::filesystem::path& file, const std::vector<std::string>& overrides) {
  return file.empty() ? parse("", "defaults", overrides) : parse(read_file(file), file.string(), overrides);
}

Config parse_config_text(const std::string& ini, const std::string& origin,
                         const std::vector<std::string>& overrides) {
  return parse(ini, origin, overrides);
}

std::string describe_config() {
  const Config defaults;
  std::string out, section;
  for (const ConfigKey& key : config_keys()) {
    if (section != key.section()) {
      out += fmt::format("{}[{}]\n", out.empty() ? "" : "\n", key.section());
      section = key.section();
    }
    const std::string value = key.print(defaults);
    out += fmt::format("  --{} (default {})\n      {}\n      {}\n", key.name, value.empty() ? "empty" : value,
                       key.help, key.allowed);
  }
  return out;
}

}  // namespace transmamba
