// What backward passes compute again is what they would have kept, to the last bit, in less memory.
#include <gtest/gtest.h>

#include <cstring>

#include "core/transpoint.h"
#include "parallel/comm/threads.h"
#include "parallel/degrees.h"
#include "parallel/model.h"
#include "tests/parallel/worlds.h"

namespace transmamba {
namespace {

struct Case {
  const char* name;
  int ranks;
  std::vector<std::string> keys;
};

std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.name; }

/// Of each rank after one forward and one backward pass.
struct Outcome {
  std::vector<Tensor> losses, gradients;
  std::vector<std::int64_t> kept_bytes, peak_bytes;  // after forward; at most
};

Outcome run(const Config& config, int ranks, Recompute recompute, Allocator& memory) {
  const auto count = static_cast<std::size_t>(ranks);
  Outcome out{std::vector<Tensor>(count), std::vector<Tensor>(count), std::vector<std::int64_t>(count),
              std::vector<std::int64_t>(count)};
  run_as_threads(ranks, [&](Communicator& world) {
    const auto rank = static_cast<std::size_t>(world.rank());
    Allocator activations;
    const Context parameters{{}, DType::f32, &memory}, context{{}, DType::f32, &activations};
    const Mesh mesh(world, config.parallel);
    Model model(config.model, resolve_transpoints(config.model, config.train.seq_len), parameters,
                place(config, mesh), 25 << 20, recompute);
    model.parameters().initialise(config.train.seed);
    const Batch whole = testing::batch_at(context, config, 0, 0);
    const Sequence sequence = model.sequence(config.train.seq_len);
    Model::Saved saved;
    out.losses[rank] = model.token_losses(
        parameters, model.forward(context, 0, sequence.deal(context, whole.tokens), {}, &saved),
        sequence.deal(context, whole.targets), &saved);
    out.kept_bytes[rank] = activations.bytes_in_use();
    activations.reset_peak();
    model.backward(context, 0, {}, 1.0 / 64, saved);
    out.peak_bytes[rank] = activations.peak_bytes();
    out.gradients[rank] = model.parameters().grads();
  });
  return out;
}

void expect_same_bits(const std::vector<Tensor>& a, const std::vector<Tensor>& b, const char* what) {
  for (std::size_t rank = 0; rank < a.size(); ++rank)
    EXPECT_EQ(std::memcmp(a[rank].view().raw(), b[rank].view().raw(),
                          static_cast<std::size_t>(a[rank].numel()) * sizeof(float)),
              0)
        << what << " of rank " << rank;
}

class Recomputing : public ::testing::TestWithParam<Case> {};

TEST_P(Recomputing, ChangesNoBitAndTakesLessMemory) {
  Config config = parse_config_text(
      "[model]\nvocab_size = 37\nhidden_size = 32\nnum_heads = 4\nqk_head_dim = 6\nv_head_dim = 10\n"
      "num_layers = 10\nlayer_pattern = TT-\nffn_hidden_size = 56\ntranspoints = 0,29,T,64,1\ninit_std = "
      "0.2\n"
      "[train]\nseq_len = 96\nmicro_batch = 2\nglobal_batch = 2\n",
      "recompute_test", GetParam().keys);
  config.parallel = resolve_parallel(config, GetParam().ranks);
  Allocator memory;
  const Outcome none = run(config, GetParam().ranks, Recompute::none, memory);
  std::vector<std::int64_t> kept = none.kept_bytes, peak = none.peak_bytes;
  for (const Recompute recompute : {Recompute::selective, Recompute::full}) {
    const Outcome again = run(config, GetParam().ranks, recompute, memory);
    expect_same_bits(again.losses, none.losses, "losses");
    expect_same_bits(again.gradients, none.gradients, "gradients");
    for (std::size_t rank = 0; rank < kept.size(); ++rank) {
      EXPECT_LT(static_cast<double>(again.kept_bytes[rank]), 0.8 * static_cast<double>(kept[rank]));
      EXPECT_LT(again.peak_bytes[rank], peak[rank]);
    }
    kept = again.kept_bytes, peak = again.peak_bytes;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Meshes, Recomputing,
    ::testing::Values(Case{"one", 1, {}}, Case{"gate_all", 1, {"--model.gate", "all"}},
                      Case{"no_converter", 1, {"--model.memory_converter", "false"}},
                      Case{"tp2", 2, {"--parallel.tp", "2"}},
                      Case{"cp2_contiguous", 2, {"--parallel.cp", "2", "--parallel.cp_layout", "contiguous"}},
                      Case{"cp4_striped", 4, {"--parallel.cp", "4", "--parallel.cp_layout", "striped"}},
                      Case{"tp2_cp2", 4, {"--parallel.tp", "2", "--parallel.cp", "2"}}),
    [](const auto& info) { return info.param.name; });

TEST(Recomputing, KeepsStatesThatSomebodyWantsToSee) {
  for (const Recompute recompute : {Recompute::selective, Recompute::full}) {
    Allocator memory;
    const Context context{{}, DType::f32, &memory};
    ModelConfig c =
        parse_config_text("[model]\nvocab_size = 19\nhidden_size = 16\n", "recompute_test", {}).model;
    c.num_layers = 1;
    const std::vector<std::int64_t> transpoints = {3};
    Model model(c, transpoints, context, recompute);
    model.parameters().initialise(1);
    const Tensor tokens = context.empty({1, 5}, DType::i32);
    std::fill_n(tokens.ptr<std::int32_t>(), 5, 7);
    Model::Saved saved;
    saved.keep_states = true;
    model.forward(context, tokens, &saved);
    const auto& inner = std::get<Mixer::Saved>(saved.layers[0].inner);
    EXPECT_TRUE(inner.state_at_transpoint && inner.last_state);
  }
}

}  // namespace
}  // namespace transmamba
