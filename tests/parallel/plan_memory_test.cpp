// What a plan says a rank's memory will hold, beside what its allocator has held.
#include <gtest/gtest.h>

#include "parallel/plan/plan.h"
#include "tests/parallel/worlds.h"

namespace transmamba {
namespace {

using testing::batch_at;

/// Most bytes that a rank's tensors take in two steps, for each pipeline rank.
std::vector<double> measured_bytes(const Config& config, int ranks) {
  const std::int64_t stage = ranks / config.parallel.pp;
  std::vector<double> peaks(static_cast<std::size_t>(ranks));
  run_as_threads(ranks, [&](Communicator& world) {
    Allocator memory;
    const Context context{{}, DType::f32, &memory};
    const Mesh mesh(world, config.parallel);
    Engine engine(config, place(config, mesh), context);
    engine.model().parameters().initialise(config.train.seed);
    for (std::int64_t step = 0; step < 2; ++step)
      engine.step(step, [&](std::int64_t i) {
        return batch_at(context, config, step, (i * mesh.dp() + mesh.dp_index()) * config.train.micro_batch);
      });
    engine.finish();
    peaks[static_cast<std::size_t>(world.rank())] = static_cast<double>(memory.peak_bytes());
  });
  std::vector<double> by_stage(static_cast<std::size_t>(config.parallel.pp));
  for (std::size_t rank = 0; rank < peaks.size(); ++rank) {
    double& most = by_stage[rank / static_cast<std::size_t>(stage)];
    most = std::max(most, peaks[rank]);
  }
  return by_stage;
}

struct Case {
  const char* name;
  int ranks;
  std::vector<std::string> keys;
};

std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.name; }

class PlanMemory : public ::testing::TestWithParam<Case> {};

TEST_P(PlanMemory, IsWithinFivePercentOfWhatTheAllocatorHeld) {
  Config config = parse_config_text(
      "[model]\nvocab_size = 256\nhidden_size = 64\nnum_heads = 4\nnum_layers = 8\nffn_hidden_size = 176\n"
      "transpoints = 0,64,T,128\n[train]\nseq_len = 256\nmicro_batch = 2\nglobal_batch = 8\n",
      "plan_memory_test", GetParam().keys);
  config.parallel = resolve_parallel(config, GetParam().ranks);
  const std::vector<Memory> predicted = make_plan(config, GetParam().ranks, machine_of(config)).memory;
  const std::vector<double> measured = measured_bytes(config, GetParam().ranks);
  ASSERT_EQ(predicted.size(), measured.size());
  for (std::size_t rank = 0; rank < measured.size(); ++rank) {
    const Memory& m = predicted[rank];
    EXPECT_NEAR(m.total() / measured[rank], 1, 0.05)
        << "pipeline rank " << rank << ": measured " << measured[rank] << ", predicted " << m.total()
        << ": parameters " << m.parameters << ", gradients " << m.gradients << ", optimizer " << m.optimizer
        << ", activations " << m.activations << ", working " << m.working;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Meshes, PlanMemory,
    ::testing::Values(Case{"one", 1, {}}, Case{"tied", 1, {"--model.tie_embeddings", "true"}},
                      Case{"mamba", 1, {"--model.transpoints", "mamba"}},
                      Case{"transformer", 1, {"--model.transpoints", "transformer"}},
                      Case{"wide_vocabulary", 1, {"--model.vocab_size", "4096"}},
                      Case{"dp2", 2, {"--parallel.dp", "2"}}, Case{"tp2", 2, {"--parallel.tp", "2"}},
                      Case{"cp2", 2, {"--parallel.cp", "2"}}, Case{"pp2", 2, {"--parallel.pp", "2"}},
                      Case{"tp2_cp2", 4, {"--parallel.tp", "2", "--parallel.cp", "2"}},
                      Case{"cp4_contiguous", 4, {"--parallel.cp", "4", "--parallel.cp_layout", "contiguous"}},
                      Case{"pp2_virtual", 2, {"--parallel.pp", "2", "--parallel.virtual_stages", "2"}},
                      Case{"tp2_pp2", 4, {"--parallel.tp", "2", "--parallel.pp", "2"}},
                      Case{"selective", 1, {"--train.recompute", "selective"}},
                      Case{"full", 1, {"--train.recompute", "full"}},
                      Case{"selective_tp2", 2, {"--train.recompute", "selective", "--parallel.tp", "2"}},
                      Case{"full_tp2", 2, {"--train.recompute", "full", "--parallel.tp", "2"}},
                      Case{"selective_cp2", 2, {"--train.recompute", "selective", "--parallel.cp", "2"}},
                      Case{"full_cp2", 2, {"--train.recompute", "full", "--parallel.cp", "2"}},
                      Case{"selective_pp2", 2, {"--train.recompute", "selective", "--parallel.pp", "2"}}),
    [](const auto& info) { return info.param.name; });

TEST(PlanMemoryOnAGpu, HasWorkspacesOnTop) {
  const auto memory = [](const std::vector<std::string>& keys) {
    Config config = parse_config_text(
        "[model]\nvocab_size = 256\nhidden_size = 1024\nnum_heads = 16\nnum_layers = 2\n"
        "transpoints = transformer\n[train]\nseq_len = 8192\nmicro_batch = 1\nglobal_batch = 1\n",
        "plan_memory_test", keys);
    const auto ranks = static_cast<int>(config.parallel.cp);
    config.parallel = resolve_parallel(config, ranks);
    return make_plan(config, ranks, machine_of(config)).memory.at(0);
  };
  const std::string device = "--train.device=cuda", dtype = "--train.dtype=bfloat16";
  EXPECT_EQ(memory({}).workspaces, 0);
  EXPECT_GT(memory({device, dtype}).workspaces, 0);
  // A mixer's backward pass is the peak here, and its attention takes 1 GiB.
  const double more = memory({device, dtype, "--model.num_layers=1"}).workspaces;
  EXPECT_NEAR(more, 1 << 30, 0.01 * (1 << 30));
  EXPECT_LT(memory({device, dtype, "--model.num_layers=1", "--train.deterministic=false"}).workspaces,
            0.1 * more);
  // The last of two ranks has 4096 queries, as many keys of its own and as many earlier ones, of 16 heads of
  // 64: beside what cuDNN takes for 4096 of either, dq, dk and dv of the latter.
  const std::string quick = "--train.deterministic=false", one = "--model.num_layers=1";
  const double apart =
      memory({device, dtype, one, quick, "--parallel.cp=2", "--parallel.cp_layout=contiguous"}).workspaces;
  const double own = memory({device, dtype, one, quick, "--train.seq_len=4096"}).workspaces;
  EXPECT_NEAR(apart - own, 3.0 * 4096 * 1024 * 2, 0.01 * apart);
}

TEST(PlanMemoryOnAGpu, KeepsLogitsOfAHeadWhoseWeightsComeLast) {
  const auto working = [](const char* tied) {
    Config config = parse_config_text(
        "[model]\nvocab_size = 32768\nhidden_size = 1024\nnum_heads = 16\nnum_layers = 2\ntranspoints = 0\n"
        "[train]\nseq_len = 8192\nmicro_batch = 1\nglobal_batch = 1\ndevice = cuda\ndtype = bfloat16\n",
        "plan_memory_test", {"--parallel.cp=2", std::string("--model.tie_embeddings=") + tied});
    config.parallel = resolve_parallel(config, 2);
    return make_plan(config, 2, machine_of(config)).memory.at(0).working;
  };
  EXPECT_GT(working("true"), working("false"));
}

}  // namespace
}  // namespace transmamba
