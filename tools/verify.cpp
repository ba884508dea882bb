// transmamba verify: does this build, on this mesh of ranks, compute what the reference implementation
// computes?
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "core/shard_boxes.h"
#include "core/transpoint.h"
#include "kernels/elementwise.h"
#include "launch/agreement.h"
#include "launch/session.h"
#include "parallel/comm/agree.h"
#include "parallel/degrees.h"
#include "parallel/engine.h"
#include "tools/commands.h"
#include "tools/golden.h"

namespace transmamba {
namespace {

constexpr std::string_view kUsage =
    "usage: transmamba verify GOLDEN.h5 [--dtype float64|float32|bfloat16] [--device cpu|cuda]\n"
    "                         [--section.key value ...]\n\n"
    "Runs a file made by `tests/golden/transmamba_reference.py golden|curve` through this build and compares "
    "logits,\n"
    "loss, every gradient, the states at TransPoints and, where present, the training curve. The error is "
    "the norm of\n"
    "the difference over the norm of the reference; a gradient whose difference is below the rounding of all "
    "gradients\n"
    "together passes as zero. In bfloat16 a tensor may be off by twice what PyTorch's is, which "
    "GOLDEN.bf16.json "
    "beside the\n"
    "file says by its name. Exits 1 if any is past its tolerance. Under mpirun or srun the ranks share the "
    "work as\n"
    "--parallel.tp, cp, pp and dp say. `transmamba train --help` lists the keys.\n";

/// Sequences [first, first + count) of batch `step` of tokens (steps, b, t + 1).
Batch batch_of(const Context& context, const Hdf5File& golden, std::int64_t step, std::int64_t first,
               std::int64_t count) {
  const std::int64_t t = golden.shape("tokens")[2] - 1;
  const Tensor run = context.empty_host({1, count, t + 1}, DType::i32);
  golden.read("tokens", {step, first, 0}, run);
  Batch batch{context.empty_host({count, t}, DType::i32), context.empty_host({count, t}, DType::i32)};
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int32_t* row = run.ptr<std::int32_t>(std::int64_t{0}, i);
    std::copy_n(row, t, batch.tokens.ptr<std::int32_t>(i));
    std::copy_n(row + 1, t, batch.targets.ptr<std::int32_t>(i));
  }
  return batch;
}

/// One golden file on one mesh. Each rank puts what it has of a tensor in its global place, in host memory
/// and type S, and the sum over ranks is the whole.
class Verification {
 public:
  Verification(const Hdf5File& golden, const Config& config, Session& session, const Mesh& mesh)
      : golden_(golden),
        config_(config),
        context_(session.context()),
        host_{{Device::cpu, context_.stream.threads, nullptr}, context_.statistics(), &host_memory_},
        mesh_(mesh),
        engine_(config, place(config, mesh), context_),
        report_(golden, tolerances_of(golden, context_.dtype), mesh.world().rank() == 0) {}

  int run() {
    load_parameters();
    forward();
    gradients();
    if (has_curve(golden_)) {
      load_parameters();
      curve();
    }
    return report_.finish();
  }

 private:
  void load_parameters() {
    agree(mesh_.world(), "parameters", [&] {
      const auto& parameters = engine_.model().parameters().parameters();
      for (std::size_t i = 0; i < parameters.size(); ++i) {
        const Parameter& p = parameters[i];
        Hdf5File::Extents offset;
        for (int d = 0; d < p.shard.global.rank(); ++d) offset.push_back(p.shard.offset()[d]);
        const Tensor values = context_.empty_host(p.value.shape(), context_.statistics());
        golden_.read("params/" + p.name, offset, values);
        from_host(context_, values, p.value);
        engine_.optimizer().set_master(i, 0, values);
      }
    });
  }

  std::int64_t first_sequence(std::int64_t micro_batch) const {
    return (micro_batch * mesh_.dp() + mesh_.dp_index()) * config_.train.micro_batch;
  }
  Batches batches(std::int64_t step) const {
    return [this, step](std::int64_t i) {
      return batch_of(context_, golden_, step, first_sequence(i), config_.train.micro_batch);
    };
  }
  Tensor zeros(const Shape& shape) const {
    const Tensor x = host_.empty(shape);
    fill({.value = 0, .y = x}, host_.stream);
    return x;
  }
  /// y = x, which lies on the device.
  void put(const Tensor& x, const View& y) const { copy({.x = to_host(context_, x), .y = y}, host_.stream); }
  const Tensor& whole(const Tensor& x) const {
    mesh_.world().all_reduce("verify", x);
    return x;
  }

  /// Logits, and each mixer's states.
  void forward() {
    const ModelConfig& m = config_.model;
    const std::int64_t b = config_.train.global_batch, mixers = m.num_mixers();
    const Tensor logits = zeros({b, config_.train.seq_len, m.vocab_size});
    std::vector<Tensor> states;  // at the TransPoint and at the end, mixer by mixer
    for (std::int64_t i = 0; i < 2 * mixers; ++i)
      states.push_back(zeros({b, m.num_heads, m.qk_head_dim, m.v_head_dim}));
    engine_.evaluate(engine_.micro_batches(), batches(0),
                     [&](const Action& action, const Tensor& output, const Model::Saved& saved) {
                       const Stage& stage = engine_.model().placement().chunk(action.chunk);
                       const std::int64_t first = first_sequence(action.micro_batch);
                       if (stage.is_last) put_logits(output, first, logits);
                       put_states(stage, saved, first, states);
                     });
    report_.compare("logits", whole(logits));
    for (std::int64_t i = 0; i < mixers; ++i) {
      const std::string name = "states/" + std::to_string(i);
      const double size = norm_of_all(golden_, name);
      report_.compare(name + "/transpoint", whole(states[static_cast<std::size_t>(2 * i)]), size);
      report_.compare(name + "/last", whole(states[static_cast<std::size_t>(2 * i + 1)]), size);
    }
  }

  void put_logits(const Tensor& mine, std::int64_t first, const Tensor& all) const {
    const Sequence sequence = engine_.model().sequence(mine.dim(1));
    const std::int64_t begin = vocab_shard(config_.model.vocab_size, mesh_.tp()).offset()[0];
    for (std::size_t i = 0; i < sequence.mine().size() && mine.dim(2) > 0; ++i) {
      const Sequence::Part& part = sequence.my_part(i);
      put(mine.slice(1, part.offset, part.offset + part.segment.size()),
          all.slice(0, first, first + mine.dim(0))
              .slice(1, part.segment.begin, part.segment.end)
              .slice(2, begin, begin + mine.dim(2)));
    }
  }

  void put_states(const Stage& stage, const Model::Saved& saved, std::int64_t first,
                  const std::vector<Tensor>& all) const {
    std::size_t mixer = 0;
    for (std::int64_t i = 0; i < stage.begin; ++i) mixer += config_.model.kind(i) == 'T';
    const auto put_state = [&](const Tensor& mine, const Tensor& whole) {
      if (!mine) return;  // on ranks that do not come by it
      const std::int64_t begin = mesh_.tp().rank() * mine.dim(1);
      put(mine, whole.slice(0, first, first + mine.dim(0)).slice(1, begin, begin + mine.dim(1)));
    };
    for (const Model::LayerSaved& layer : saved.layers)
      if (const auto* inner = std::get_if<Mixer::Saved>(&layer.inner)) {
        put_state(inner->state_at_transpoint, all[2 * mixer]);
        put_state(inner->last_state, all[2 * mixer + 1]);
        ++mixer;
      }
  }

  void gradients() {
    const StepResult result = engine_.gradients(0, batches(0));
    report_.compare("loss", std::vector<double>{result.loss});
    const Tensor& grads = engine_.model().parameters().grads();
    compare_all(
        "grads/",
        [&](const OwnedRun& run) { return grads.slice(0, run.offset, run.offset + run.end - run.begin); },
        norm_of_all(golden_, "grads"));
  }

  /// A group of the golden file against what each rank owns of it.
  void compare_all(const std::string& group, const std::function<View(const OwnedRun&)>& elements,
                   double size) {
    const ParameterStore& store = engine_.model().parameters();
    for (const std::string& dataset : golden_.datasets(group.substr(0, group.size() - 1))) {
      Shape shape;
      for (const std::int64_t extent : golden_.shape(dataset)) shape.append(extent);
      const Tensor all = zeros(shape);
      for (const OwnedRun& run : engine_.optimizer().owned()) {
        const Parameter& p = store.parameters()[run.parameter];
        if (p.primary && group + p.name == dataset) put_run(run, p, elements(run), all);
      }
      report_.compare(dataset, whole(all), size);
    }
  }

  void put_run(const OwnedRun& run, const Parameter& p, const View& elements, const Tensor& all) const {
    for (const ShardBox& box : shard_boxes(p.shard, run.begin, run.end)) {
      const std::int64_t from = box.local - run.begin;
      const View source(elements.slice(0, from, from + box.extent.numel()).raw(), elements.dtype(),
                        box.extent);
      View target = all;
      for (int d = 0; d < box.extent.rank(); ++d)
        target = target.slice(d, box.offset[d], box.offset[d] + box.extent[d]);
      put(Tensor(source), target);
    }
  }

  /// Below float64 the trajectories part as rounding is amplified from step to step, so there only the losses
  /// are compared.
  void curve() {
    std::vector<double> losses, norms;
    for (std::int64_t step = 0; step < config_.train.steps; ++step) {
      const StepResult result = engine_.step(step, batches(step));
      losses.push_back(result.loss);
      norms.push_back(result.grad_norm);
    }
    engine_.finish();
    report_.compare("curve/loss", losses);
    if (context_.dtype != DType::f64) return;
    report_.compare("curve/grad_norm", norms);
    compare_all(
        "curve/params/", [&](const OwnedRun& run) { return engine_.optimizer().weights(run); }, 0);
  }

  const Hdf5File& golden_;
  const Config& config_;
  const Context& context_;
  Allocator host_memory_;
  const Context host_;
  const Mesh& mesh_;
  Engine engine_;
  Report report_;
};

}  // namespace

int verify(Process& process, std::vector<std::string> arguments) {
  if (arguments.empty() || is_help(arguments[0]) || arguments[0].starts_with("--"))
    return print_usage(process, kUsage, arguments);
  const std::filesystem::path path = arguments[0];
  arguments.erase(arguments.begin());
  // float64 unless told otherwise; --dtype is short for --train.dtype, and --device for --train.device.
  bool has_dtype = false;
  for (std::string& word : arguments) {
    for (const std::string key : {"dtype", "device"})
      if (word == "--" + key || word.starts_with("--" + key + "=")) word.insert(2, "train.");
    has_dtype |= word.starts_with("--train.dtype");
  }
  if (!has_dtype) arguments.push_back("--train.dtype=float64");

  const Hdf5File golden = Hdf5File::open(path);
  Config config = golden_config(golden, process.size(), arguments);
  Session session(config.train, process);
  const auto world = session.world(process, static_cast<double>(config.parallel.timeout));
  check_same_configuration(*world, config);
  config.parallel = resolve_parallel(config, process.size());
  const Mesh mesh(*world, config.parallel);
  if (process.rank() == 0) {
    const ParallelConfig& p = config.parallel;
    fmt::print("{}: {} on {}, {} sequences of {} tokens, TransPoints {}\n", path.string(),
               to_string(session.context().dtype), to_string(session.context().stream.device),
               config.train.global_batch, config.train.seq_len,
               fmt::join(resolve_transpoints(config.model, config.train.seq_len), ","));
    fmt::print("{} rank{}: tp {} x cp {} x dp {} x pp {}, micro-batches of {}\n", process.size(),
               process.size() == 1 ? "" : "s", p.tp, p.cp, p.dp, p.pp, config.train.micro_batch);
  }
  return Verification(golden, config, session, mesh).run();
}

}  // namespace transmamba
