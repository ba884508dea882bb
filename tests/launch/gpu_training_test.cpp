// Training on a GPU in bfloat16: captured graphs against kernel by kernel, profiled steps against others, and
// memory against what a plan says.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>

#include "core/profile.h"
#include "kernels/elementwise.h"
#include "launch/session.h"
#include "parallel/plan/plan.h"
#include "tests/parallel/worlds.h"

namespace transmamba {
namespace {

bool has_gpu() {
  try {
    return gpu::count() > 0;
  } catch (const Error&) {
    return false;
  }
}

Config on_gpu(const std::string& ini, const std::vector<std::string>& keys) {
  std::vector<std::string> words{"--train.device", "cuda", "--train.dtype", "bfloat16"};
  words.insert(words.end(), keys.begin(), keys.end());
  Config config = parse_config_text(ini, "gpu_training_test", words);
  config.parallel = resolve_parallel(config, 1);
  return config;
}

/// A model that takes steps on one GPU.
class TrainingRun {
 public:
  explicit TrainingRun(const Config& config)
      : config_(config),
        session(config.train),
        world_(self_communicator()),
        mesh_(*world_, config.parallel),
        profile(session.context().stream),
        engine(config_, place(config_, mesh_), profiled(session.context())) {
    engine.initialise();
  }
  StepResult step(std::int64_t step) {
    return engine.step(step, [&](std::int64_t i) { return batch(step, i); });
  }
  double evaluate() {
    return engine.evaluate(1, [&](std::int64_t i) { return batch(1000, i); });
  }
  /// Of every parameter.
  std::vector<std::string> bits() {
    engine.finish();
    std::vector<std::string> out;
    for (const Parameter& p : engine.model().parameters().parameters()) {
      const Tensor host = to_host(session.context(), p.value);
      out.emplace_back(static_cast<std::size_t>(host.numel() * size_of(host.dtype())), '\0');
      std::memcpy(out.back().data(), host.view().raw(), out.back().size());
    }
    return out;
  }

 private:
  Config config_;

 public:
  Session session;
  Tensor held;  ///< whatever a test wants to keep

 private:
  std::unique_ptr<Communicator> world_;
  Mesh mesh_;

 public:
  Profile profile;
  Engine engine;

 private:
  Context profiled(Context context) {
    context.profile = &profile;
    return context;
  }
  Batch batch(std::int64_t step, std::int64_t micro_batch) const {
    const Shape shape{config_.train.micro_batch, config_.train.seq_len};
    const Context& context = session.context();
    const Batch batch{context.empty_host(shape, DType::i32), context.empty_host(shape, DType::i32)};
    for (std::int64_t b = 0; b < shape[0]; ++b)
      for (std::int64_t t = 0; t < shape[1]; ++t) {
        const std::int64_t sequence = micro_batch * shape[0] + b;
        *batch.tokens.ptr<std::int32_t>(b, t) = testing::token_at(config_, step, sequence, t);
        *batch.targets.ptr<std::int32_t>(b, t) = testing::token_at(config_, step, sequence, t + 1);
      }
    return batch;
  }
};

constexpr const char* kSmall =
    "[model]\nvocab_size = 1024\nhidden_size = 256\nnum_heads = 4\nnum_layers = 6\nffn_hidden_size = 512\n"
    "transpoints = 0,256,T\n[train]\nseq_len = 512\nmicro_batch = 2\nglobal_batch = 8\nsteps = 3\n";

struct Outcome {
  std::vector<double> losses, norms;
  std::vector<std::string> parameters;
  std::int64_t runs = 0, replays = 0;
};

/// Three steps of four micro-batches; `between` sees the run after each.
Outcome train(const std::vector<std::string>& keys, const std::function<void(TrainingRun&)>& between = {}) {
  TrainingRun run(on_gpu(kSmall, keys));
  Outcome out;
  for (std::int64_t step = 0; step < 3; ++step) {
    const StepResult result = run.step(step);
    out.losses.push_back(result.loss), out.norms.push_back(result.grad_norm);
    if (between) between(run);
  }
  out.parameters = run.bits();
  if (const MicroBatch* const micro_batch = run.engine.micro_batch())
    out.runs = micro_batch->runs(), out.replays = micro_batch->replays();
  return out;
}

void expect_same(const Outcome& a, const Outcome& b) {
  EXPECT_EQ(a.losses, b.losses);
  EXPECT_EQ(a.norms, b.norms);
  EXPECT_TRUE(a.parameters == b.parameters) << "parameters differ";  // bytes: not to be printed
}

class GpuTraining : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "no GPU was found";
  }
};

TEST_F(GpuTraining, ACapturedGraphTrainsAsItsKernelsDo) {
  const Outcome eager = train({"--train.cuda_graphs", "false"}), captured = train({});
  EXPECT_EQ(eager.runs, 0);
  EXPECT_EQ(captured.runs, 12);
  EXPECT_EQ(captured.replays, 11);  // all but the first
  expect_same(eager, captured);
}

TEST_F(GpuTraining, RecomputingIsCapturedToo) {
  for (const char* mode : {"selective", "full"})
    expect_same(train({"--train.recompute", mode, "--train.cuda_graphs", "false"}),
                train({"--train.recompute", mode}));
}

TEST_F(GpuTraining, ATensorThatIsHeldFromAStepOnChangesNothing) {
  const Outcome kept = train({}, [](TrainingRun& run) {
    const Context& context = run.session.context();
    if (!run.held) run.held = context.empty({1 << 20}, DType::f32);
    fill({.value = std::nan(""), .y = run.held}, context.stream);  // what the graph might read
  });
  EXPECT_EQ(kept.runs, 12);
  EXPECT_EQ(kept.replays, 3 + 5);  // three runs are kernel by kernel, then comes another capture
  expect_same(train({}), kept);
}

TEST_F(GpuTraining, AnEvaluationBetweenStepsChangesNothing) {
  std::vector<double> losses;
  const Outcome evaluated = train({}, [&](TrainingRun& run) { losses.push_back(run.evaluate()); });
  EXPECT_EQ(evaluated.replays, 11);
  EXPECT_NE(losses[0], losses[2]);
  expect_same(train({}), evaluated);
}

constexpr const char* kLarger =
    "[model]\nvocab_size = 8192\nhidden_size = 1024\nnum_heads = 16\nnum_layers = 8\nffn_hidden_size = 2816\n"
    "transpoints = 0,1024,2048,T\n[train]\nseq_len = 4096\nmicro_batch = 2\nglobal_batch = 4\nsteps = 2\n";

TEST_F(GpuTraining, AProfiledStepRunsWithoutGraphsAndChangesNoBit) {
  std::int64_t done = 0;
  const Outcome profiled = train({}, [&](TrainingRun& run) {
    if (++done == 1) run.profile.begin(), run.profile.record();  // the second step
    if (done == 2) run.profile.pause(), run.profile.end();
  });
  EXPECT_EQ(profiled.runs, 12);
  EXPECT_EQ(profiled.replays, 3 + 0 + 4);
  expect_same(train({}), profiled);
}

TEST_F(GpuTraining, AProfiledStepIsWhatItsRegionsAddUpTo) {
  TrainingRun run(on_gpu(kLarger, {}));
  run.step(0);  // kernels make their choices
  run.profile.begin();
  run.profile.record();
  const double before = Profile::now();
  run.step(1);
  const double after = Profile::now();
  run.profile.pause();
  run.profile.end();
  const std::vector<RegionSpan>& regions = run.profile.regions();
  const RegionSpan& step = regions.at(0);
  EXPECT_EQ(name_of(step), "step 2");
  constexpr double kTied = 1e-4;  // the GPU's clock to the host's
  EXPECT_GT(step.begin.seconds, before - kTied);
  EXPECT_LT(step.end.seconds, after + kTied);
  EXPECT_GT(step.seconds(), 0.9 * (after - before));
  double own = 0, layers = 0;
  std::map<std::string, int> count;
  std::map<std::string, double> seconds;
  for (const RegionSpan& r : regions) {
    ++count[r.family], seconds[r.family] += r.own();
    EXPECT_LE(r.begin.seconds, r.end.seconds) << name_of(r);
    EXPECT_GE(r.own(), -1e-6) << name_of(r);
    EXPECT_EQ(r.exposed, 0) << name_of(r);
    own += r.own();
    if (name_of(r).starts_with("layer ")) layers += r.seconds();
    if (r.parent < 0) continue;
    const RegionSpan& parent = regions[static_cast<std::size_t>(r.parent)];
    EXPECT_LE(parent.begin.seconds, r.begin.seconds + 1e-6) << name_of(r) << " in " << name_of(parent);
    EXPECT_LE(r.end.seconds, parent.end.seconds + 1e-6) << name_of(r) << " in " << name_of(parent);
  }
  for (const auto& [family, own_seconds] : seconds)
    fmt::print("{:<28} {:>4} {:>8.3f} ms\n", family, count[family], 1e3 * own_seconds);
  EXPECT_NEAR(own / step.seconds(), 1, 1e-3);
  EXPECT_GT(step.nested, 0.9 * step.seconds());  // little lies outside of all regions
  EXPECT_GT(layers, 0.5 * step.seconds());
  for (const char* family : {"mixer forward", "mixer backward", "mlp forward", "mlp backward"})
    EXPECT_EQ(count[family], 2 * 4) << family;  // micro-batches, layers
  EXPECT_EQ(count["convert and scan"], 2 * 4);
  EXPECT_EQ(count["attend"], 2 * 3);  // not where P = 0
  EXPECT_EQ(count["optimizer"], 1);
}

struct Case {
  const char* name;
  std::vector<std::string> keys;
};
std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.name; }

class GpuMemoryPlan : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "no GPU was found";
  }
};

TEST_P(GpuMemoryPlan, IsWithinFivePercentOfWhatTheArenaHeld) {
  const Config config = on_gpu(kLarger, GetParam().keys);
  const Memory m = make_plan(config, 1, machine_of(config)).memory.at(0);
  TrainingRun run(config);
  for (std::int64_t step = 0; step < 2; ++step) run.step(step);
  const auto measured = static_cast<double>(run.session.memory().peak_bytes());
  EXPECT_NEAR(m.total() / measured, 1, 0.05)
      << "measured " << measured << " of " << run.session.memory().reserved_bytes() << " reserved, predicted "
      << m.total() << ": parameters " << m.parameters << ", gradients " << m.gradients << ", optimizer "
      << m.optimizer << ", activations " << m.activations << ", working " << m.working << ", workspaces "
      << m.workspaces;
}

INSTANTIATE_TEST_SUITE_P(Shapes, GpuMemoryPlan,
                         ::testing::Values(Case{"mixed", {}},
                                           Case{"transformer", {"--model.transpoints", "transformer"}},
                                           Case{"mamba", {"--model.transpoints", "mamba"}},
                                           Case{"wide_vocabulary", {"--model.vocab_size", "65536"}},
                                           Case{"any_order", {"--train.deterministic", "false"}},
                                           Case{"selective", {"--train.recompute", "selective"}},
                                           Case{"full", {"--train.recompute", "full"}}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace transmamba
