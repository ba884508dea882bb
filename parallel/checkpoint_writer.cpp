#include "parallel/checkpoint_writer.h"

#include <chrono>
#include <system_error>
#include <thread>
#include <utility>

#include "core/durable_rename.h"
#include "parallel/checkpoint_folder.h"
#include "parallel/comm/agree.h"

namespace transmamba {
namespace {

namespace fs = std::filesystem;
constexpr std::string_view kWhere = "checkpoint";
constexpr std::chrono::seconds kFolderTime{30};  // for one that rank 0 makes to be seen on other hosts
constexpr std::chrono::seconds kTrialTime{3};    // the same, where each look asks the file system anew

/// Opens the folder first: a network file system may remember for a while that it has no such name.
bool is_seen(const fs::path& entry) {
  std::error_code error;
  const fs::directory_iterator opened(entry.parent_path(), error);
  return fs::exists(entry, error);
}

void write_index(const fs::path& path, const TrainState& state, const Config& config,
                 const TokenizerSource& tokenizer, DType dtype, const std::vector<std::string>& shards) {
  Hdf5File file = Hdf5File::create(path);
  write_tensors(file, dtype, shards);
  file.set_attribute("format_version", kCheckpointVersion);
  file.set_attribute("step", state.step);
  file.set_attribute("consumed_sequences", state.consumed_sequences);
  file.set_attribute("seed", config.train.seed);
  file.set_attribute("rng", std::string("philox4x32-10, keyed by seed; counters: step, consumed_sequences"));
  file.set_attribute("config", config.to_ini());
  file.set_attribute("tokenizer", tokenizer.name);
  if (!tokenizer.model.empty())
    file.write("tokenizer_model", std::vector<std::uint8_t>(tokenizer.model.begin(), tokenizer.model.end()));
  file.set_attribute("shards", static_cast<std::int64_t>(shards.size()));
  file.close();
}

}  // namespace

CheckpointWriter::CheckpointWriter(Communicator& world, const CheckpointConfig& where, const Config& config,
                                   TokenizerSource tokenizer, const ParameterStore& store,
                                   const Optimizer& optimizer)
    : world_(world),
      where_(where),
      config_(config),
      tokenizer_(std::move(tokenizer)),
      store_(store),
      optimizer_(optimizer) {
  if (world_.rank() == 0) remove_old(where_.path, 0);
  shards_ = gather_text(world_, "checkpoint: what is in the shards", describe_shard(store_, optimizer_));
  if (world_.rank() != 0) shards_.clear();
  if (!where_.async || where_.every == 0) return;
  copy_.emplace(store_, optimizer_);
  if (store_.context().stream.device == Device::cpu) return;
  beside_ = gpu::create_stream();
  taken_ = std::make_unique<gpu::Event>(), copied_ = std::make_unique<gpu::Event>();
}

CheckpointWriter::~CheckpointWriter() {
  if (task_.valid()) task_.wait();
  if (copied_) gpu::destroy_stream(beside_);
}

void CheckpointWriter::begin(const TrainState& state, Keep keep) {
  finish();
  state_ = state, keep_ = keep;
  if (!copy_) {
    together([&] { make_folder(); });
    start_shard();
    return finish();
  }
  if (!copied_) {
    copy_->take(store_.context().stream);
    return start_shard();
  }
  // Beside what the GPU computes next, which waits before it changes what is being copied (copied()).
  taken_->record(store_.context().stream), taken_->hold(beside_);
  copy_->take(beside_);
  copied_->record(beside_);
  phase_ = Phase::copy;
}

/// Without a copy it waits for end_task(): what is to be saved may be on the GPU, which belongs to this
/// thread.
void CheckpointWriter::start(const std::function<void()>& task) {
  error_ = nullptr;
  task_ = std::async(copy_ ? std::launch::async : std::launch::deferred, task);
}

void CheckpointWriter::end_task() {
  try {
    if (task_.valid()) task_.get();
  } catch (...) {
    error_ = std::current_exception();
  }
}

/// Rank 0's only: a rank that does not see it has another file system, and its shard would be missing.
void CheckpointWriter::make_folder() const {
  const fs::path aside = partial_folder(where_.path, state_.step);
  if (world_.rank() == 0) return void(fs::create_directories(aside));
  const auto start = std::chrono::steady_clock::now();
  while (copy_ && !fs::exists(aside) && std::chrono::steady_clock::now() - start < kFolderTime)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
}

void CheckpointWriter::start_shard() {
  phase_ = Phase::shards;
  start([this] {
    const fs::path aside = partial_folder(where_.path, state_.step);
    if (copy_) make_folder();
    write_shard(aside, {world_.rank(), world_.size(), state_.step}, store_, optimizer_,
                copy_ ? &*copy_ : nullptr);
    if (world_.rank() != 0) sync_to_disk(aside);  // its own name in it, as each computer knows it
  });
}

bool CheckpointWriter::is_busy() {
  if (phase_ == Phase::copy && copied_->passed()) start_shard();
  if (phase_ == Phase::copy) return true;
  if (task_.valid() && task_.wait_for(std::chrono::seconds(0)) != std::future_status::ready) return true;
  end_task();
  return false;
}

void CheckpointWriter::write_index() const {
  const fs::path aside = partial_folder(where_.path, state_.step);
  transmamba::write_index(aside / "index.h5", state_, config_, tokenizer_, store_.context().statistics(),
                          shards_);
  write_cksum(aside);
  sync_to_disk(aside);
  put_in_place(aside, checkpoint_folder(where_.path, state_.step));
  set_aside_later_ones(where_.path, state_.step);
  remove_old(where_.path, keep_ == Keep::all ? 0 : where_.keep);
}

/// What fails on one rank fails on all, and is the end of the save.
void CheckpointWriter::together(const std::function<void()>& mine) {
  try {
    agree(world_, "checkpoint", mine);
  } catch (const LostRank&) {
    throw;
  } catch (const std::exception& error) {
    std::error_code ignored;
    phase_ = Phase::idle, error_ = nullptr;
    if (world_.rank() == 0)  // after agree() nobody writes there any more
      fs::remove_all(partial_folder(where_.path, state_.step), ignored);
    fail(kWhere, "step {} could not be saved; earlier checkpoints are untouched: {}", state_.step,
         error.what());
  }
}

void CheckpointWriter::advance(bool any_has_failed) {
  if (any_has_failed)
    together([&] {
      if (error_) std::rethrow_exception(error_);
    });
  phase_ = phase_ == Phase::shards ? Phase::index : Phase::idle;
  if (world_.rank() == 0 && phase_ == Phase::index) start([this] { write_index(); });
}

void CheckpointWriter::finish() {
  if (phase_ == Phase::copy) gpu::synchronize(beside_), start_shard();
  while (is_under_way()) {
    end_task();
    advance(true);  // nobody has told how it went
  }
}

void save_checkpoint(Communicator& world, CheckpointConfig where, const TrainState& state,
                     const Config& config, const TokenizerSource& tokenizer, const ParameterStore& store,
                     const Optimizer& optimizer) {
  where.async = false;
  CheckpointWriter(world, where, config, tokenizer, store, optimizer).begin(state);
}

/// A folder of the same name on another host's own disk would only be noticed at the end of the first save.
void prepare_checkpoints(Communicator& world, const CheckpointConfig& where) {
  struct Trial {
    const fs::path folder;
    std::error_code error = {};
    ~Trial() { fs::remove(folder, error); }
  } trial{trial_folder(where.path, world.rank())};
  agree(world, "checkpoint: trial", [&] {
    fs::create_directories(where.path, trial.error);
    if (!trial.error) fs::create_directory(trial.folder, trial.error);
    check(!trial.error, kWhere, "checkpoint.path = {}: cannot be written to: {}", where.path.string(),
          trial.error.message());
  });
  agree(world, "checkpoint: one folder", [&] {
    const auto start = std::chrono::steady_clock::now();
    while (!is_seen(trial_folder(where.path, 0))) {
      check(
          std::chrono::steady_clock::now() - start < kTrialTime, kWhere,
          "checkpoint.path = {}: is not the folder that rank 0 has there, but one of this host alone; every "
          "host has to see a run's files at the same paths, as on a shared file system",
          where.path.string());
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  });
}

}  // namespace transmamba
