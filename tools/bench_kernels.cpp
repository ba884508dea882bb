// transmamba bench kernels: how near each kernel is to what the machine can do.
#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>

#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "launch/session.h"
#include "tools/commands.h"
#include "tools/kernel_cases.h"

namespace transmamba {
namespace {

constexpr auto kUsage =
    "usage: transmamba bench kernels [--filter REGEX] [--device cpu|cuda] [--dtype TYPE] [--json FILE]\n"
    "                                [--config CONFIG] [--seconds N] [--section.key value ...]\n\n"
    "Times every kernel of a training step at the shapes of a model, one micro-batch at once, and the two "
    "rates\n"
    "that bound them: of a big copy, and of a big matrix product. The floor of a kernel is the longer of "
    "its\n"
    "bytes over the one (each input read once, each output written once) and its products over the other.\n\n"
    "  --filter REGEX   only kernels in whose names this is found: ssd, ^gemm_.*_dw$\n"
    "  --device, --dtype  the same as --train.device and --train.dtype (cuda, bfloat16)\n"
    "  --json FILE      write the numbers, in seconds, bytes and FLOP, here too\n"
    "  --config CONFIG  the run whose shapes to measure (hidden 1536, 16 heads, vocabulary 32768, 2 x 8192 "
    "tokens)\n"
    "  --seconds N      how long to time each kernel, about (default 0.2)\n"
    "  --section.key    shapes, e.g. --model.num_heads 12 --train.seq_len 32768\n";

constexpr auto kDefaultShapes =
    "model.vocab_size = 32768\nmodel.hidden_size = 1536\nmodel.num_layers = 24\nmodel.num_heads = 16\n"
    "model.ffn_hidden_size = 4096\nmodel.tie_embeddings = true\ntrain.seq_len = 8192\n"
    "train.micro_batch = 2\ntrain.global_batch = 2\n";

struct Options {
  std::string filter, json, config;
  double seconds = 0.2;
  std::vector<std::string> overrides;
};

double parse_seconds(const std::string& word) {
  double seconds = 0;
  const char* end = word.data() + word.size();
  const auto [stop, error] = std::from_chars(word.data(), end, seconds);
  check(error == std::errc() && stop == end && seconds > 0 && seconds <= 3600, "bench kernels",
        "--seconds: expected a number above 0 and at most 3600, got \"{}\"", word);
  return seconds;
}

Options parse(const std::vector<std::string>& arguments) {
  Options options;
  bool has_device = false, has_dtype = false;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    const auto value = [&] {
      check(i + 1 < arguments.size(), "bench kernels", "{} needs a value", word);
      return arguments[++i];
    };
    if (word == "--filter")
      options.filter = value();
    else if (word == "--json")
      options.json = value();
    else if (word == "--config")
      options.config = value();
    else if (word == "--seconds")
      options.seconds = parse_seconds(value());
    else if (word == "--device" || word == "--dtype")
      options.overrides.insert(options.overrides.end(), {"--train." + word.substr(2), value()});
    else
      options.overrides.push_back(word);
    has_device |= word.starts_with("--device") || word.starts_with("--train.device");
    has_dtype |= word.starts_with("--dtype") || word.starts_with("--train.dtype");
  }
  if (!has_device && options.config.empty()) options.overrides.push_back("--train.device=cuda");
  if (!has_dtype && options.config.empty()) options.overrides.push_back("--train.dtype=bfloat16");
  return options;
}

std::vector<KernelCase> matching(std::vector<KernelCase> cases, const std::string& filter) {
  std::regex pattern;
  try {
    pattern = std::regex(filter);
  } catch (const std::regex_error&) {
    fail("bench kernels", "--filter: expected a regular expression, got \"{}\"", filter);
  }
  std::string names;
  for (const KernelCase& c : cases) names += (names.empty() ? "" : ", ") + c.name;
  std::erase_if(cases, [&](const KernelCase& c) { return !std::regex_search(c.name, pattern); });
  check(!cases.empty(), "bench kernels", "--filter: \"{}\" is found in none of {}", filter, names);
  return cases;
}

/// Seconds a call: the median of 9 rounds of so many calls that all take about `seconds`. The calls take
/// turns, each on memory of its own.
double time_of(const std::vector<KernelCall>& calls, const Context& context, double seconds) {
  using Clock = std::chrono::steady_clock;
  constexpr int kRounds = 9;
  std::size_t next = 0;
  const auto run = [&](std::int64_t count) {
    const auto start = Clock::now();
    for (std::int64_t i = 0; i < count; ++i) calls[next++ % calls.size()]();
    synchronize(context);
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  run(static_cast<std::int64_t>(calls.size()));  // the first may search, compile or map memory
  const double once = run(3) / 3;
  const auto count = static_cast<std::int64_t>(std::clamp(seconds / kRounds / once, 1.0, 1e6));
  std::vector<double> rounds;
  for (int i = 0; i < kRounds; ++i) rounds.push_back(run(count) / static_cast<double>(count));
  std::nth_element(rounds.begin(), rounds.begin() + kRounds / 2, rounds.end());
  return rounds[kRounds / 2];
}

struct Result {
  double seconds = 0, bytes = 0;
};

/// Enough sets of tensors that a call finds none of its own in a cache.
Result measure(const KernelCase& kernel, const Context& context, double seconds) {
  constexpr double kBeyondCaches = 256e6;
  std::vector<KernelCall> calls;
  double bytes = 0;
  do {
    Buffers buffers(context, 1000 * calls.size());
    calls.push_back(kernel.prepare(buffers));
    bytes = buffers.bytes();
  } while (calls.size() < 8 && static_cast<double>(calls.size()) * bytes < kBeyondCaches);
  return {time_of(calls, context, seconds), bytes};
}

/// What bounds all kernels.
struct Ceilings {
  double bytes = 0, flops = 0;  ///< a second
};

Ceilings measure_ceilings(const Context& context, double seconds) {
  const bool on_gpu = context.stream.device == Device::cuda;
  const std::int64_t side = !on_gpu ? 1024 : context.dtype == DType::bf16 ? 8192 : 4096;
  const std::int64_t length = (on_gpu ? 1 << 30 : 1 << 26) / size_of(context.dtype);
  const KernelCase big_copy{"", "", 0, [=](Buffers& b) {
                              const Tensor x = b.reads(b.make({length})), y = b.writes(b.make({length}));
                              return KernelCall([=, s = b.context().stream] { copy({.x = x, .y = y}, s); });
                            }};
  const KernelCase product{
      "", "", 0, [=](Buffers& b) {
        const Tensor x = b.make({side, side}), w = b.make({side, side}), y = b.make({side, side});
        return KernelCall(
            [=, s = b.context().stream] { gemm({.a = x, .b = w, .transpose_b = true, .c = y}, s); });
      }};
  const Result moved = measure(big_copy, context, seconds);
  return {moved.bytes / moved.seconds,
          2 * std::pow(static_cast<double>(side), 3) / measure(product, context, seconds).seconds};
}

}  // namespace

int bench_kernels(Process& process, const std::vector<std::string>& arguments) {
  if (!arguments.empty() && is_help(arguments[0])) return print_usage(process, kUsage, arguments);
  check(process.size() == 1, "bench kernels",
        "processes: expected 1, got {}; start it without mpirun or srun", process.size());
  const Options options = parse(arguments);
  const Config config = options.config.empty()
                            ? parse_config_text(kDefaultShapes, "bench kernels", options.overrides)
                            : parse_config(options.config, options.overrides);
  check(config.model.vocab_size > 0, "bench kernels", "model.vocab_size: expected a number above 0, got 0");
  const std::vector<KernelCase> cases = matching(kernel_cases(config), options.filter);
  Session session(config.train, process);
  const Context& context = session.context();
  const Ceilings ceilings = measure_ceilings(context, options.seconds);
  const std::string device =
      session.gpu() ? session.gpu()->name : fmt::format("{} CPU threads", context.stream.threads);
  fmt::print("{}, {}: a copy moves {:.4g} GB/s, a matrix product does {:.4g} TFLOP/s\n\n", device,
             to_string(context.dtype), 1e-9 * ceilings.bytes, 1e-12 * ceilings.flops);
  fmt::print("{:<24}{:<38}{:>10}{:>10}{:>9}{:>10}{:>8}\n", "kernel", "shape", "ms", "TFLOP/s", "GB/s",
             "floor ms", "% floor");
  nlohmann::ordered_json json = {{"device", device},
                                 {"dtype", to_string(context.dtype)},
                                 {"copy_bytes_per_second", ceilings.bytes},
                                 {"product_flops_per_second", ceilings.flops},
                                 {"kernels", nlohmann::ordered_json::array()}};
  for (const KernelCase& kernel : cases) {
    const auto [seconds, bytes] = measure(kernel, context, options.seconds);
    const double floor = std::max(bytes / ceilings.bytes, kernel.flops / ceilings.flops);
    const std::string rate = kernel.flops > 0 ? fmt::format("{:.4g}", 1e-12 * kernel.flops / seconds) : "";
    fmt::print("{:<24}{:<38}{:>10.4f}{:>10}{:>9.4g}{:>10.4f}{:>8.1f}\n", kernel.name, kernel.shape,
               1e3 * seconds, rate, 1e-9 * bytes / seconds, 1e3 * floor, 100 * floor / seconds);
    std::fflush(stdout);
    json["kernels"].push_back({{"name", kernel.name},
                               {"shape", kernel.shape},
                               {"seconds", seconds},
                               {"bytes", bytes},
                               {"flops", kernel.flops},
                               {"floor_seconds", floor},
                               {"percent_of_floor", 100 * floor / seconds}});
  }
  if (!options.json.empty()) {
    std::ofstream out(options.json);
    out << json.dump(1) << '\n';
    check(static_cast<bool>(out.flush()), "bench kernels", "--json: cannot write {}", options.json);
  }
  return 0;
}

}  // namespace transmamba
