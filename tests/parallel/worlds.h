// Training runs on a mesh of threads, seen whole: what the ranks own, put together.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/shard_boxes.h"
#include "core/transpoint.h"
#include "parallel/comm/threads.h"
#include "parallel/degrees.h"
#include "parallel/engine.h"

namespace transmamba::testing {

/// Global tensors by name, row major.
using Globals = std::map<std::string, std::vector<double>>;

/// Copies the elements of `flat` (laid out like ParameterStore::values()) that this rank owns and that count
/// to their place. Ranks write different elements, so they need no lock; the vectors must be there.
inline void collect(const Engine& engine, const Tensor& flat, Globals& out) {
  const ParameterStore& store = engine.model().parameters();
  for (const OwnedRun& run : engine.optimizer().owned()) {
    const Parameter& p = store.parameters()[run.parameter];
    if (!p.primary) continue;
    std::vector<double>& global = out.at(p.name);
    for (std::int64_t i = run.begin; i < run.end; ++i)
      global[static_cast<std::size_t>(p.shard.global_index(i))] =
          flat.ptr<double>()[run.offset + i - run.begin];
  }
}

struct Observed {
  std::vector<double> losses, norms;
  std::vector<Globals> gradients;  // of each step
  Globals initial, final;
  std::vector<std::int64_t>
      stale;  // of each rank: values that are not those of `final` at the end, copies too
};

/// Tokens (b, T + 1) of a step, the same for every mesh.
inline std::int32_t token_at(const Config& c, std::int64_t step, std::int64_t sequence, std::int64_t t) {
  return static_cast<std::int32_t>((step * 7919 + sequence * 104729 + t * t * 31 + t * 17 + sequence * t) %
                                   c.model.vocab_size);
}

inline Batch batch_at(const Context& context, const Config& c, std::int64_t step, std::int64_t first) {
  Batch batch{context.empty({c.train.micro_batch, c.train.seq_len}, DType::i32),
              context.empty({c.train.micro_batch, c.train.seq_len}, DType::i32)};
  for (std::int64_t b = 0; b < c.train.micro_batch; ++b)
    for (std::int64_t t = 0; t < c.train.seq_len; ++t) {
      *batch.tokens.ptr<std::int32_t>(b, t) = token_at(c, step, first + b, t);
      *batch.targets.ptr<std::int32_t>(b, t) = token_at(c, step, first + b, t + 1);
    }
  return batch;
}

/// Trains `steps` steps on `ranks` threads as ranks. `visit`, where given, sees each rank's world at the end.
inline Observed train_on_threads(Config config, int ranks, std::int64_t steps,
                                 const std::function<void(Communicator&, Engine&)>& visit = {}) {
  config.parallel = resolve_parallel(config, ranks);
  Observed seen;
  {  // a serial model knows the names and sizes
    Allocator memory;
    const Context context{{}, DType::f64, &memory};
    const Model whole(config.model, resolve_transpoints(config.model, config.train.seq_len), context);
    for (const Parameter& p : whole.parameters().parameters())
      seen.initial[p.name].resize(static_cast<std::size_t>(p.value.numel()));
    seen.final = seen.initial;
    seen.gradients.assign(static_cast<std::size_t>(steps), seen.initial);
  }
  seen.stale.resize(static_cast<std::size_t>(ranks));
  seen.losses.resize(static_cast<std::size_t>(steps)), seen.norms = seen.losses;
  run_as_threads(ranks, [&](Communicator& world) {
    Allocator memory;
    const Context context{{}, DType::f64, &memory};
    const Mesh mesh(world, config.parallel);
    Engine engine(config, place(config, mesh), context);
    engine.model().parameters().initialise(config.train.seed);
    collect(engine, engine.model().parameters().values(), seen.initial);
    for (std::int64_t step = 0; step < steps; ++step) {
      const StepResult result = engine.step(step, [&](std::int64_t i) {
        return batch_at(context, config, step, (i * mesh.dp() + mesh.dp_index()) * config.train.micro_batch);
      });
      collect(engine, engine.model().parameters().grads(), seen.gradients[static_cast<std::size_t>(step)]);
      if (world.rank() == 0) {
        seen.losses[static_cast<std::size_t>(step)] = result.loss;
        seen.norms[static_cast<std::size_t>(step)] = result.grad_norm;
      }
    }
    engine.finish();
    collect(engine, engine.model().parameters().values(), seen.final);
    world.barrier("all is collected");
    for (const Parameter& p : engine.model().parameters().parameters())
      for (std::int64_t i = 0; i < p.value.numel(); ++i)
        seen.stale[static_cast<std::size_t>(world.rank())] +=
            p.value.ptr<double>()[i] !=
            seen.final.at(p.name)[static_cast<std::size_t>(p.shard.global_index(i))];
    if (visit) visit(world, engine);
  });
  return seen;
}

}  // namespace transmamba::testing
