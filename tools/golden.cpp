#include "tools/golden.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "kernels/dispatch.h"

namespace transmamba {
namespace {

/// The reference's name for a setting, and our key.
constexpr std::array<std::array<const char*, 2>, 25> kKeys = {{{"vocab_size", "model.vocab_size"},
                                                               {"hidden_size", "model.hidden_size"},
                                                               {"num_layers", "model.num_layers"},
                                                               {"layer_pattern", "model.layer_pattern"},
                                                               {"num_heads", "model.num_heads"},
                                                               {"qk_head_dim", "model.qk_head_dim"},
                                                               {"v_head_dim", "model.v_head_dim"},
                                                               {"ffn_hidden_size", "model.ffn_hidden_size"},
                                                               {"conv_width", "model.conv_width"},
                                                               {"transpoints", "model.transpoints"},
                                                               {"gate", "model.gate"},
                                                               {"memory_converter", "model.memory_converter"},
                                                               {"rope_theta", "model.rope_theta"},
                                                               {"norm_eps", "model.norm_eps"},
                                                               {"tie_embeddings", "model.tie_embeddings"},
                                                               {"batch", "train.global_batch"},
                                                               {"seq_len", "train.seq_len"},
                                                               {"lr", "optimizer.lr"},
                                                               {"min_lr", "optimizer.min_lr"},
                                                               {"warmup_steps", "optimizer.warmup_steps"},
                                                               {"beta1", "optimizer.beta1"},
                                                               {"beta2", "optimizer.beta2"},
                                                               {"adam_eps", "optimizer.eps"},
                                                               {"weight_decay", "optimizer.weight_decay"},
                                                               {"clip_grad", "optimizer.clip_grad"}}};

bool sets(const std::vector<std::string>& words, const std::string& key) {
  return std::any_of(words.begin(), words.end(), [&](const std::string& word) {
    return word == "--" + key || word.starts_with("--" + key + "=");
  });
}

}  // namespace

bool has_curve(const Hdf5File& golden) {
  return golden.has("curve/loss") && golden.shape("curve/loss") != Hdf5File::Extents{0};
}

Config golden_config(const Hdf5File& golden, int ranks, const std::vector<std::string>& words) {
  for (const char* name : {"tokens", "logits", "loss"})
    check(golden.has(name), "verify", "{}: not a file of the reference implementation: dataset {} is missing",
          golden.path().string(), name);
  const bool with_curve = has_curve(golden);
  std::string ini = with_curve ? fmt::format("train.steps = {}\n", golden.attribute<std::int64_t>("steps"))
                               : "optimizer.warmup_steps = 0\n";
  for (const auto& [name, key] : kKeys) {
    const bool optimizer = std::string_view(key).starts_with("optimizer.");
    check(golden.has_attribute(name), "verify",
          "{}: not a file of the reference implementation: attribute {} is missing", golden.path().string(),
          name);
    if (optimizer && !with_curve) continue;
    ini += std::visit([&, key = key](const auto& value) { return fmt::format("{} = {}\n", key, value); },
                      golden.attribute(name));
  }
  ini += "train.micro_batch = 1\n";
  Config config = parse_config_text(ini, golden.path().string(), words);
  const auto batches = golden.shape("tokens");  // (steps, b, t + 1)
  check(
      batches.size() == 3 && config.train.global_batch == batches[1] &&
          config.train.seq_len == batches[2] - 1 && (!with_curve || config.train.steps <= batches[0]),
      "verify",
      "{}: train.global_batch, seq_len and steps: expected those of the file, {} sequences of {} tokens and "
      "at most {} steps",
      golden.path().string(), batches[1], batches[2] - 1, batches[0]);
  const ParallelConfig& p = config.parallel;
  const std::int64_t dp = p.dp > 0 ? p.dp : std::max<std::int64_t>(1, ranks / (p.tp * p.cp * p.pp));
  if (!sets(words, "train.micro_batch") && p.pp == 1 && batches[1] % dp == 0)
    config.train.micro_batch = batches[1] / dp;
  return config;
}

Tolerances tolerances_of(const Hdf5File& golden, DType dtype) {
  if (dtype != DType::bf16) {
    const bool exact = dtype == DType::f64;
    return [=](const std::string& name) {
      return Tolerance{!exact ? 1e-4 : name.starts_with("curve/") ? 1e-8 : 1e-9};
    };
  }
  const std::string file = std::filesystem::path(golden.path()).replace_extension(".bf16.json").string();
  std::ifstream in(file);
  check(in.is_open(), "verify",
        "{}: expected what PyTorch in bfloat16 is off, by dataset; there is no such file", file);
  const auto errors = nlohmann::json::parse(in, nullptr, /*allow_exceptions=*/false);
  check(errors.is_object(), "verify", "{}: expected a JSON object, names and numbers", file);
  return [=](const std::string& name) {
    check(errors.contains(name) && errors[name].is_number(), "verify",
          "{}: expected what PyTorch in bfloat16 is off for {}; it is missing", file, name);
    const auto peer = errors[name].get<double>();
    return Tolerance{2 * peer, peer};
  };
}

Report::Report(const Hdf5File& golden, Tolerances tolerances, bool prints)
    : golden_(golden), tolerances_(std::move(tolerances)), prints_(prints) {
  if (prints_) fmt::print("{:<44} {:>12} {:>10}\n", "", "error", "tolerance");
}

void Report::compare(const std::string& name, const ConstView& ours, double whole) {
  Allocator memory;
  const Tensor reference(memory, ours.shape(), DType::f64);
  golden_.read(name, reference);
  const double* expected = reference.ptr<double>();
  double difference = 0, size = 0, epsilon = 0;
  with_float(ours.dtype(), "verify", [&](auto type) {
    const auto* p = ours.ptr<decltype(type)>();
    epsilon = static_cast<double>(std::numeric_limits<decltype(type)>::epsilon());
    for (std::int64_t i = 0; i < ours.numel(); ++i) {
      difference += std::pow(static_cast<double>(p[i]) - expected[i], 2);
      size += expected[i] * expected[i];
    }
  });
  difference = std::sqrt(difference), size = std::sqrt(size);
  const double error = difference == 0 ? 0 : difference / size;
  const Tolerance tolerance = tolerances_(name);
  const bool is_rounding = difference <= epsilon * whole && !(error <= tolerance.allowed);
  const bool ok = error <= tolerance.allowed || is_rounding;  // NaN is not
  ++count_, failed_ += !ok;
  if (!prints_) return;
  const std::string beside =
      tolerance.peer > 0 ? fmt::format("  {:.2f} x PyTorch's", error / tolerance.peer) : "";
  fmt::print("{:<44} {:>12.2e} {:>10.{}e}  {}{}{}\n", name, error, tolerance.allowed,
             tolerance.peer > 0 ? 2 : 0, ok ? "ok" : "FAIL", beside,
             is_rounding ? "  (difference below the rounding of the whole)" : "");
}

void Report::compare(const std::string& name, const std::vector<double>& ours) {
  Shape shape;
  for (const std::int64_t extent : golden_.shape(name)) shape.append(extent);
  check(shape.numel() == static_cast<std::int64_t>(ours.size()), "verify", "{}: expected {} numbers, got {}",
        name, shape.numel(), ours.size());
  compare(name, ConstView(reinterpret_cast<const std::byte*>(ours.data()), DType::f64, shape));
}

int Report::finish() const {
  if (prints_) fmt::print("{} compared, {} failed\n", count_, failed_);
  return failed_ ? 1 : 0;
}

double norm_of_all(const Hdf5File& golden, const std::string& group) {
  double squares = 0;
  for (const std::string& name : golden.datasets(group))
    for (double x : golden.read_vector<double>(name)) squares += x * x;
  return std::sqrt(squares);
}

}  // namespace transmamba
