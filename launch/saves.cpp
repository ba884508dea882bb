#include "launch/saves.h"

#include "parallel/checkpoint_folder.h"

namespace transmamba {

template <class Part>
void Saves::attempt(bool is_last, const Part& part) {
  const auto start = Clock::now();
  bool is_saved = false;
  try {
    part();
    is_saved = !writer_.is_under_way();
  } catch (const LostRank&) {
    throw;
  } catch (const Error& error) {  // the same on all ranks
    if (is_last) throw;
    if (log_) log_->warn(fmt::format("{}; training goes on", error.what()));
  }
  const auto now = Clock::now();
  const auto seconds = [&](Clock::time_point since) {
    return std::chrono::duration<double>(now - since).count();
  };
  stall_ += seconds(start), stall_of_save_ += seconds(start);
  if (!is_saved) return;
  const auto& path = config_.checkpoint.path;
  fault_.saved(checkpoint_folder(path, step_) / shard_name(world_.rank()), step_);
  if (log_)
    log_->note(fmt::format("step {}  saved {} in {:.2f} s, {:.3f} s of it stall", step_, path.string(),
                           seconds(began_), stall_of_save_));
}

void Saves::begin(const TrainState& state, bool is_last, CheckpointWriter::Keep keep) {
  finish();
  began_ = Clock::now(), step_ = state.step, stall_of_save_ = 0;
  attempt(is_last, [&] {
    writer_.begin(state, keep);
    if (is_last) writer_.finish();
  });
}

void Saves::begin(const TrainState& state, bool is_last) {
  begin(state, is_last, CheckpointWriter::Keep::newest);
}

void Saves::save_beside(const TrainState& state) {
  begin(state, /*is_last=*/true, CheckpointWriter::Keep::all);
}

void Saves::move_on(const StepFlags& flags) {
  if (writer_.is_under_way() && !flags.is_saving) attempt(false, [&] { writer_.advance(flags.save_failed); });
}

void Saves::finish() {
  if (writer_.is_under_way()) attempt(false, [&] { writer_.finish(); });
}

}  // namespace transmamba
