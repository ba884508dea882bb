// A small model with an optimizer that has taken steps: something to save.
#pragma once

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "core/transpoint.h"
#include "kernels/elementwise.h"
#include "parallel/checkpoint_writer.h"
#include "parallel/model.h"
#include "parallel/optimizer.h"

namespace transmamba::testing {

inline Config small_config(std::int64_t hidden = 16) {
  return parse_config_text("[model]\nvocab_size = 13\nhidden_size = " + std::to_string(hidden) +
                               "\nnum_layers = 3\nnum_heads = 2\nffn_hidden_size = 24\n"
                               "transpoints = 0,4\n[train]\nseq_len = 8\n",
                           "small_config", {});
}

/// Parameters of `seed`, and moments after two steps with made-up gradients. In bfloat16, which the CPU only
/// holds, made-up moments.
class SmallRun {
 public:
  explicit SmallRun(std::int64_t seed, const Config& c = small_config(), DType dtype = DType::f32)
      : config(c),
        context_{{}, dtype, &memory_},
        model(config.model, resolve_transpoints(config.model, config.train.seq_len), context_),
        optimizer(config.optimizer, model.parameters(), context_) {
    ParameterStore& store = model.parameters();
    store.initialise(seed, [&](std::size_t parameter, std::int64_t begin, const Tensor& values) {
      optimizer.set_master(parameter, begin, values);
    });
    if (seed == 0) return;  // as a fresh process has it
    if (dtype == DType::bf16) {
      for (const OwnedRun& run : optimizer.owned())
        for (const View& moment : {optimizer.m(run), optimizer.v(run)})
          for (std::int64_t i = 0; i < moment.numel(); ++i)
            moment.ptr<float>()[i] = static_cast<float>((i * 37 + seed) % 101) / 64;
      return;
    }
    for (std::int64_t step = 0; step < 2; ++step) {
      for (const Parameter& p : store.parameters())
        with_float(dtype, "small_run", [&](auto type) {
          auto* grad = p.grad.ptr<decltype(type)>();
          for (std::int64_t i = 0; i < p.grad.numel(); ++i)
            grad[i] = static_cast<decltype(type)>(((i * 37 + seed + 5 * step) % 101) - 50) / 64;
        });
      const Tensor squares = context_.empty({1}, DType::f64);
      fill({.value = 0, .y = squares}, context_.stream);
      optimizer.add_squared_norm(context_, squares);
      optimizer.step(context_, step, 1e-3, squares);
    }
  }

  /// Every parameter and both of its moments, as bytes.
  std::vector<std::string> bits() const {
    std::vector<std::string> out;
    for (const OwnedRun& run : optimizer.owned())
      for (const View& view : {optimizer.weights(run), optimizer.m(run), optimizer.v(run)}) {
        out.emplace_back(static_cast<std::size_t>(view.numel() * size_of(view.dtype())), '\0');
        std::memcpy(out.back().data(), view.raw(), out.back().size());
      }
    return out;
  }
  void save(const std::filesystem::path& root, std::int64_t step, std::int64_t keep = 0,
            const TokenizerSource& tokenizer = {"bytes", ""}) const {
    CheckpointConfig where;
    where.path = root, where.keep = keep;
    save_checkpoint(*self_communicator(), where, {step, 10 * step}, config, tokenizer, model.parameters(),
                    optimizer);
  }
  void load(const std::filesystem::path& folder) {
    const Checkpoint checkpoint(folder);
    checkpoint.load_parameters(model.parameters());
    checkpoint.load_optimizer(model.parameters(), optimizer);
  }

  Config config;

 private:
  Allocator memory_;
  Context context_;

 public:
  Model model;
  Optimizer optimizer;
};

}  // namespace transmamba::testing
