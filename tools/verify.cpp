// transmamba verify: does this build compute what the reference implementation computes?
#include <fmt/ranges.h>

#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "core/hdf5_file.h"
#include "core/transpoint.h"
#include "kernels/elementwise.h"
#include "launch/session.h"
#include "parallel/step.h"
#include "tools/commands.h"

namespace transmamba {
namespace {

constexpr std::string_view kUsage =
    "usage: transmamba verify GOLDEN.h5 [--dtype float64|float32] [--section.key value ...]\n\n"
    "Runs a file made by `tests/golden/transmamba_reference.py golden|curve` through this build and compares "
    "logits,\n"
    "loss, every gradient, the states at TransPoints and, where present, the training curve. The error is "
    "the norm of\n"
    "the difference over the norm of the reference; a gradient whose difference is below the rounding of all "
    "gradients\n"
    "together passes as zero. Exits 1 if any is past its tolerance.\n"
    "`transmamba train --help` lists the keys.\n";

/// The reference's name for a setting, and our key.
constexpr std::array<std::array<const char*, 2>, 26> kKeys = {{{"vocab_size", "model.vocab_size"},
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
                                                               {"batch", "train.micro_batch"},
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

Config config_of(const Hdf5File& golden, bool with_curve, const std::vector<std::string>& overrides) {
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
  return parse_config_text(ini, golden.path().string(), overrides);
}

/// Prints a line a comparison and remembers whether all were good.
class Report {
 public:
  Report(const Hdf5File& golden, Allocator& memory) : golden_(golden), memory_(memory) {
    fmt::print("{:<44} {:>12} {:>10}\n", "", "error", "tolerance");
  }

  /// `ours` against a dataset of the golden file. `whole` is the norm of the vector that this is a part of
  /// (all gradients, say). A difference below the rounding of `whole` in our type is none: that is how an
  /// exact zero, or a gradient that almost cancels, is told from a wrong one.
  void compare(const std::string& name, const ConstView& ours, double tolerance, double whole = 0) {
    Tensor reference(memory_, ours.shape(), DType::f64);
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
    const bool is_rounding = difference <= epsilon * whole;
    const double error = difference == 0 ? 0 : difference / size;
    line(name, error, tolerance, is_rounding && !(error <= tolerance));
  }
  void compare(const std::string& name, const std::vector<double>& ours, double tolerance) {
    compare(name,
            ConstView(reinterpret_cast<const std::byte*>(ours.data()), DType::f64,
                      {static_cast<std::int64_t>(ours.size())}),
            tolerance);
  }
  void line(const std::string& name, double error, double tolerance, bool is_rounding = false) {
    const bool ok = error <= tolerance || is_rounding;  // NaN is not
    ++count_, failed_ += !ok;
    fmt::print("{:<44} {:>12.2e} {:>10.0e}  {}{}\n", name, error, tolerance, ok ? "ok" : "FAIL",
               is_rounding ? "  (difference below the rounding of the whole)" : "");
  }
  int finish() const {
    fmt::print("{} compared, {} failed\n", count_, failed_);
    return failed_ ? 1 : 0;
  }

 private:
  const Hdf5File& golden_;
  Allocator& memory_;
  int count_ = 0, failed_ = 0;
};

double norm_of_all(const Hdf5File& golden, const std::string& group) {
  double squares = 0;
  for (const std::string& name : golden.datasets(group))
    for (double x : golden.read_vector<double>(name)) squares += x * x;
  return std::sqrt(squares);
}

/// Batch `index` of tokens (steps, b, t + 1).
Batch batch_of(const Context& context, const Hdf5File& golden, std::int64_t index) {
  const auto shape = golden.shape("tokens");
  const std::int64_t b = shape[1], t = shape[2] - 1;
  const Tensor run = context.empty({1, b, t + 1}, DType::i32);
  golden.read("tokens", {index, 0, 0}, run);
  Batch batch{context.empty({b, t}, DType::i32), context.empty({b, t}, DType::i32)};
  for (std::int64_t i = 0; i < b; ++i) {
    const std::int32_t* row = run.ptr<std::int32_t>(std::int64_t{0}, i);
    std::copy_n(row, t, batch.tokens.ptr<std::int32_t>(i));
    std::copy_n(row + 1, t, batch.targets.ptr<std::int32_t>(i));
  }
  return batch;
}

void load_parameters(const Hdf5File& golden, const std::string& group, const ParameterStore& store) {
  for (const Parameter& p : store.parameters()) golden.read(group + p.name, p.value);
}

void verify_gradients(const Context& context, const Hdf5File& golden, const Model& model, double tolerance,
                      Report& report) {
  const Batch batch = batch_of(context, golden, 0);
  const double tokens = static_cast<double>(batch.tokens.numel());
  Model::Saved saved;
  saved.keep_states = true;
  const Tensor logits = model.forward(context, batch.tokens, &saved);
  report.compare("logits", logits, tolerance);
  std::size_t mixer = 0;
  for (const Model::LayerSaved& layer : saved.layers)
    if (const auto* inner = std::get_if<Mixer::Saved>(&layer.inner)) {
      const std::string name = "states/" + std::to_string(mixer++);
      const double size = norm_of_all(golden, name);
      report.compare(name + "/transpoint", inner->state, tolerance, size);
      report.compare(name + "/last", inner->last_state, tolerance, size);
    }
  const Tensor losses = model.token_losses(context, logits, batch.targets, &saved);
  const Tensor sum_of_losses = context.empty({1}, DType::f64);
  fill({.value = 0, .y = sum_of_losses}, context.stream);
  sum({.x = losses, .result = sum_of_losses}, context.stream);
  const double loss = *sum_of_losses.ptr<double>() / tokens, expected = golden.read_scalar<double>("loss");
  report.line("loss", loss == expected ? 0 : std::abs(loss - expected) / std::abs(expected), tolerance);
  model.backward(context, 1 / tokens, saved);
  const double all = norm_of_all(golden, "grads");
  for (const Parameter& p : model.parameters().parameters())
    report.compare("grads/" + p.name, p.grad, tolerance, all);
}

/// In float32 the trajectories part as rounding is amplified from step to step, so there only the losses are
/// compared.
void verify_curve(const Context& context, const Hdf5File& golden, const Config& config, Model& model,
                  double tolerance, Report& report) {
  Optimizer optimizer(config.optimizer, model.parameters(), context);
  std::vector<double> losses, norms;
  for (std::int64_t step = 0; step < config.train.steps; ++step) {
    const auto batch = [&](std::int64_t) { return batch_of(context, golden, step); };
    const StepResult result = train_step(context, config, step, 1, batch, model, optimizer);
    losses.push_back(result.loss);
    norms.push_back(result.grad_norm);
  }
  report.compare("curve/loss", losses, tolerance);
  if (context.dtype != DType::f64) return;
  report.compare("curve/grad_norm", norms, tolerance);
  for (const Parameter& p : model.parameters().parameters())
    report.compare("curve/params/" + p.name, p.value, tolerance);
}

}  // namespace

int verify(Process& process, std::vector<std::string> arguments) {
  if (arguments.empty() || is_help(arguments[0]) || arguments[0].starts_with("--"))
    return print_usage(process, kUsage, arguments);
  const std::filesystem::path path = arguments[0];
  arguments.erase(arguments.begin());
  // float64 unless told otherwise; --dtype is short for --train.dtype.
  bool has_dtype = false;
  for (std::string& word : arguments) {
    if (word == "--dtype" || word.starts_with("--dtype=")) word.replace(0, 7, "--train.dtype");
    has_dtype |= word.starts_with("--train.dtype");
  }
  if (!has_dtype) arguments.push_back("--train.dtype=float64");

  const Hdf5File golden = Hdf5File::open(path);
  for (const char* name : {"tokens", "logits", "loss"})
    check(golden.has(name), "verify", "{}: not a file of the reference implementation: dataset {} is missing",
          path.string(), name);
  const bool with_curve = golden.has("curve/loss") && golden.shape("curve/loss") != Hdf5File::Extents{0};
  const Config config = config_of(golden, with_curve, arguments);
  const auto batches = golden.shape("tokens");  // (steps, b, t + 1)
  check(batches.size() == 3 && config.train.micro_batch == batches[1] &&
            config.train.global_batch == batches[1] && config.train.seq_len == batches[2] - 1 &&
            (!with_curve || config.train.steps <= batches[0]),
        "verify",
        "{}: train.micro_batch, global_batch, seq_len and steps: expected those of the file, {} sequences of "
        "{} tokens and "
        "at most {} steps",
        path.string(), batches[1], batches[2] - 1, batches[0]);
  Session session(config.train, process.ranks_on_cores());
  const Context& context = session.context();
  const std::vector<std::int64_t> transpoints = resolve_transpoints(config.model, config.train.seq_len);

  Model model(config.model, transpoints, context);
  load_parameters(golden, "params/", model.parameters());
  const bool exact = context.dtype == DType::f64;
  fmt::print("{}: {} on {}, {} sequences of {} tokens, TransPoints {}\n", path.string(),
             to_string(context.dtype), to_string(context.stream.device), config.train.micro_batch,
             config.train.seq_len, fmt::join(transpoints, ","));
  Report report(golden, session.memory());
  verify_gradients(context, golden, model, exact ? 1e-9 : 1e-4, report);
  if (with_curve) {
    load_parameters(golden, "params/", model.parameters());
    verify_curve(context, golden, config, model, exact ? 1e-8 : 1e-4, report);
  }
  return report.finish();
}

}  // namespace transmamba
