// The loop over steps.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "core/cost_model.h"
#include "launch/trainer.h"
#include "parallel/checkpoint_folder.h"
#include "parallel/comm/agree.h"

namespace transmamba {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

Batch Trainer::batch(const TokenDataset& data, const SampleOrder& order, std::int64_t first,
                     std::int64_t count) const {
  const Context& context = session_.context();
  const Shape shape{count, config_.train.seq_len};
  Batch batch{context.empty_host(shape, DType::i32), context.empty_host(shape, DType::i32)};
  read_batch(data, order, first, batch.tokens, batch.targets);
  return batch;
}

std::int64_t Trainer::validation_sequences() const {
  const SampleOrder order = SampleOrder::sequential(data_.validation->size(), config_.train.seq_len);
  return std::min(config_.train.validate_sequences, order.samples_per_epoch());
}

std::vector<Batch> Trainer::validation_batches() const {
  const SampleOrder order = SampleOrder::sequential(data_.validation->size(), config_.train.seq_len);
  const std::int64_t sequences = validation_sequences();
  const std::int64_t each = config_.train.micro_batch, all = (sequences + each - 1) / each, dp = mesh_->dp();
  const std::int64_t mine = all / dp + (mesh_->dp_index() < all % dp);  // dealt out in turn
  std::vector<Batch> batches;
  agree(world_, "validation", [&] {
    for (std::int64_t i = 0; i < mine; ++i) {
      const std::int64_t first = (i * dp + mesh_->dp_index()) * each;
      batches.push_back(batch(*data_.validation, order, first, std::min(each, sequences - first)));
    }
  });
  return batches;
}

double Trainer::validate(const std::vector<Batch>& batches) {
  const double loss = engine_->evaluate(static_cast<std::int64_t>(batches.size()), [&](std::int64_t i) {
    watch_.begin("validating", state_.step);
    return batches[static_cast<std::size_t>(i)];
  });
  return loss / static_cast<double>(validation_sequences() * config_.train.seq_len);
}

/// Of all ranks, so that the one that is broken is found.
void Trainer::report_bad_step() {
  std::string by_rank;
  const std::vector<std::string> all = gather_text(world_, "not finite", engine_->not_finite());
  for (std::size_t rank = 0; rank < all.size(); ++rank)
    if (!all[rank].empty())
      by_rank += fmt::format("{}rank {}: {}", by_rank.empty() ? "" : "; ", rank, all[rank]);
  const std::string why = bad_steps_.why(by_rank);
  if (log_) log_->note(why);
  if (!bad_steps_.too_many()) return;
  throw Diverged(
      fmt::format("[train] {}, and train.max_skipped = {}; {}; {}; a smaller optimizer.lr or "
                  "optimizer.clip_grad may help",
                  why, config_.train.max_skipped, bad_steps_.last_fine(), save_last_fine()));
}

std::string Trainer::save_last_fine() {
  if (!saves_) return "nothing is saved without checkpoint.path";
  const std::filesystem::path& path = config_.checkpoint.path;
  const auto newest = [&](std::size_t after) {
    const auto folders = list_checkpoints(world_, path);
    return after < folders.size() ? folders[after].string() : "none";
  };
  saves_->finish();
  const std::int64_t fine = bad_steps_.fine_step();
  if (fine == 0) return fmt::format("there is nothing to save; the newest checkpoint: {}", newest(0));
  engine_->finish();
  try {
    saves_->save_beside(state_);
  } catch (const LostRank&) {
    throw;
  } catch (const Error& error) {
    return fmt::format("saving failed: {}; the newest checkpoint: {}", error.what(), newest(0));
  }
  // Where the last fine step itself broke the parameters, one from before it is what helps.
  return fmt::format("saved {}, with what step {} left; the newest from before that: {}",
                     checkpoint_folder(path, state_.step).string(), fine,
                     newest(list_checkpoints(world_, path, fine - 1).size()));
}

/// Of a run that was slower than it could be, this says why.
void Trainer::report_graphs() {
  const MicroBatch* const micro_batch = engine_->micro_batch();
  if (micro_batch && log_)
    log_->note(fmt::format("{} of {} micro-batches were replays of a captured CUDA graph",
                           micro_batch->replays(), micro_batch->runs()));
}

void Trainer::report_communication() {
  if (world_.size() == 1) return;
  const TrafficSummary summary = traffic_.summary();
  agree(world_, "report", [&] {
    if (!speaks()) return;
    log_->note(fmt::format("\n{}", format_table(summary)));
    std::filesystem::path path = config_.log.communication;
    if (path.empty() && !config_.checkpoint.path.empty())
      path = config_.checkpoint.path / "communication.json";
    if (!path.empty()) write_json(path, summary);
  });
}

StepResult Trainer::take_step() {
  const TrainConfig& t = config_.train;
  const auto data = [&](std::int64_t i) {
    const HostRegion region(context_, "read data");
    watch_.begin("a micro-batch", state_.step + 1);
    const std::int64_t micro_batch = i * mesh_->dp() + mesh_->dp_index();
    return batch(*data_.training, *order_, state_.consumed_sequences + micro_batch * t.micro_batch,
                 t.micro_batch);
  };
  const auto flags = [&] {
    StepFlags mine{.stops = signals_ && signals_->requested()};
    if (saves_) mine.is_saving = saves_->is_busy(), mine.save_failed = saves_->has_failed();
    return mine;
  };
  const StepResult result = engine_->step(state_.step, data,
                                          {.flags = flags,
                                           .largest_loss = bad_steps_.largest_loss(),
                                           .after = saves_ ? saves_->copied() : nullptr,
                                           .spoils = fault_.spoils(state_.step + 1)});
  ++state_.step;
  state_.consumed_sequences += t.global_batch;
  bad_steps_.add(state_.step, result);
  return result;
}

ExitCode Trainer::run() {
  const TrainConfig& t = config_.train;
  const std::int64_t steps = t.steps;
  const double tokens = static_cast<double>(t.global_batch * t.seq_len);
  const double flops = training_flops(config_.model, t.seq_len, t.global_batch);
  const auto due = [&](std::int64_t every) {
    return state_.step == steps || (every > 0 && state_.step % every == 0);
  };
  const auto finish = [&] {
    const auto start = Clock::now();
    engine_->finish();
    traffic_.add_rest(seconds_since(start));
  };
  double training_seconds = 0;
  std::int64_t trained = 0;
  bool stops = false;

  traffic_.restart();
  while (state_.step < steps && !stops) {
    const bool is_profiled = profiler_ && profiler_->begin_step(state_.step);
    pace_.begin_step(is_profiled);
    const auto start = Clock::now();
    watch_.begin("what comes before its first micro-batch", state_.step + 1);
    fault_.begin_step(state_.step + 1);
    watch_.rest();  // a stage that reads no data has no more to say until the next step
    const StepResult result = take_step();
    watch_.begin("what comes after it", state_.step);
    const double seconds = seconds_since(start);
    training_seconds += seconds, ++trained;
    pace_.end_step(seconds);
    if (is_profiled) profiler_->end_step();
    if (!is_profiled && trained > config_.log.communication_skip)
      traffic_.add_step(seconds);
    else
      traffic_.leave_out_step();

    if (is_line_due(state_.step, config_.log.every, steps)) slowest_ = pace_.slowest(), traffic_.restart();
    if (log_)
      log_->step({.step = state_.step,
                  .steps = steps,
                  .loss = result.loss,
                  .grad_norm = result.grad_norm,
                  .lr = result.lr,
                  .tokens_per_second = tokens / seconds,
                  .peak_fraction = flops / seconds / peak_flops_,
                  .is_mfu = peak_is_published_,
                  .memory_bytes = session_.memory().peak_bytes(),
                  .resident_bytes = peak_resident_bytes(),
                  .skipped = bad_steps_.skipped(),
                  .stall_seconds = saves_ ? saves_->take_stall() : 0,
                  .slowest_rank = slowest_ ? slowest_->rank : 0,
                  .slowest_excess = slowest_ ? slowest_->excess : 0,
                  .seconds_left = training_seconds / static_cast<double>(trained) *
                                  static_cast<double>(steps - state_.step)});
    if (result.skipped) report_bad_step(), traffic_.restart();
    if (saves_) saves_->move_on(result.flags), traffic_.restart();
    if (profiler_ && !is_profiled && profiler_->is_due()) finish(), profiler_->report(), traffic_.restart();
    stops = result.flags.stops && state_.step < steps;
    const bool saves = saves_ && (stops || due(config_.checkpoint.every)),
               validates = data_.validation && !stops && due(t.validate_every);
    if (!saves && !validates && state_.step < steps) continue;
    finish();
    const auto save = [&] { saves_->begin(state_, stops || state_.step == steps); };
    std::vector<Batch> batches;
    if (validates) try {
        batches = validation_batches();
      } catch (const Error&) {  // bad validation data must not cost the training
        if (saves) save();
        throw;
      }
    if (validates) {
      watch_.rest();
      const double loss = validate(batches);
      if (log_) log_->validation(state_.step, loss);
    }
    watch_.begin("saving", state_.step);
    if (saves) save();
    traffic_.restart();
  }
  watch_.rest();
  if (trained == 0 && log_)
    log_->note(fmt::format("nothing to do: step {} of {} is reached", state_.step, steps));
  if (profiler_ && profiler_->is_due()) profiler_->report();
  if (trained > 0) report_graphs(), report_communication();
  if (stops && log_)
    log_->note(
        config_.checkpoint.path.empty()
            ? fmt::format("stopped by a signal after step {}; without checkpoint.path nothing is saved",
                          state_.step)
            : fmt::format("stopped by a signal after step {}; --checkpoint.resume auto goes on there",
                          state_.step));
  return stops ? kExitStopped : kExitDone;
}

}  // namespace transmamba
