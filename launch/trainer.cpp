#include "launch/trainer.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "core/cost_model.h"
#include "core/transpoint.h"
#include "launch/agreement.h"
#include "parallel/comm/agree.h"
#include "parallel/degrees.h"
#include "parallel/plan/plan.h"

namespace transmamba {

void check_memory(const Config& config, int ranks, const gpu::Info& gpu) {
  double needed = 0;
  for (const Memory& memory : make_plan(config, ranks, machine_of(config)).memory)
    needed = std::max(needed, memory.total());
  constexpr std::int64_t kBeside = std::int64_t{1} << 30;  // of the driver and of libraries
  check(needed + kBeside <= static_cast<double>(gpu.free_bytes), "memory",
        "this run needs about {} and {} beside on {}, which has {} free of {}; less is needed with a lower "
        "train.micro_batch (now {}) or train.seq_len ({}), with train.recompute = selective or full ({}), or "
        "shared among more ranks by parallel.tp, cp, pp or dp",
        format_bytes(static_cast<std::int64_t>(needed)), format_bytes(kBeside), gpu.name,
        format_bytes(gpu.free_bytes), format_bytes(gpu.total_bytes), config.train.micro_batch,
        config.train.seq_len, config.train.recompute);
}

namespace {

/// With no word to other ranks, which may stand still too, nor to stdout, where this one may.
[[noreturn]] void end_stalled(int rank, const std::string& what) {
  const std::string text = fmt::format(
      "transmamba: rank {}: [train] {}: the run does not get on (train.stall_timeout)\n", rank, what);
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
  std::_Exit(kExitLost);
}

}  // namespace

Trainer::Trainer(Config config, Session& session, Communicator& world, const StopSignals* signals)
    : config_(std::move(config)),
      session_(session),
      world_(world),
      signals_(signals),
      pace_(world, session.context().stream),
      fault_(config_.fault, world.rank()),
      bad_steps_(config_.train),
      traffic_(world),
      watch_(config_.train.stall_timeout == 0
                 ? 0
                 : static_cast<double>(std::max(config_.train.stall_timeout, 2 * config_.parallel.timeout)),
             [rank = world.rank()](const std::string& what) { end_stalled(rank, what); }) {
  config_.validate_training();
  check_same_configuration(world_, config_);
  if (config_.log.profile > 0)
    profiler_ = std::make_unique<Profiler>(config_, world_, session_.context().stream);
  context_ = session_.context();
  context_.profile = profiler_ ? profiler_->profile() : nullptr;
  agree(world_, "data", [&] { open_data(); });
  check_same_data(world_, *data_.training, data_.validation.get());
  config_.parallel = resolve_parallel(config_, world_.size());
  if (session_.gpu()) agree(world_, "memory", [&] { check_memory(config_, world_.size(), *session_.gpu()); });
  mesh_ = std::make_unique<Mesh>(world_, config_.parallel);
  engine_ = std::make_unique<Engine>(config_, place(config_, *mesh_), context_);
  if (!config_.checkpoint.path.empty())
    agree(world_, "lock", [&] {
      if (speaks()) lock_ = std::make_unique<FolderLock>(config_.checkpoint.path);
    });
  resume();
  if (!config_.checkpoint.path.empty()) prepare_checkpoints(world_, config_.checkpoint);
  agree(world_, "start", [&] {
    if (!speaks()) return;
    std::filesystem::path metrics = config_.log.metrics;
    if (metrics.empty() && !config_.checkpoint.path.empty())
      metrics = config_.checkpoint.path / "metrics.jsonl";
    log_ = std::make_unique<MetricsLog>(metrics, state_.step, config_.log.every, world_.size() == 1);
    if (!config_.checkpoint.path.empty()) warn_of_later_checkpoints();
  });
  if (!config_.checkpoint.path.empty())
    saves_ = std::make_unique<Saves>(
        world_, config_, TokenizerSource{data_.training->tokenizer(), data_.training->tokenizer_model()},
        engine_->model().parameters(), engine_->optimizer(), fault_, log_.get());
  find_peak();
  print_start();
  if (profiler_) profiler_->plan(state_.step, log_.get());
}

void Trainer::open_data() {
  check(!config_.data.path.empty(), "config",
        "data.path: expected a token file (transmamba prepare makes one), got nothing");
  data_.training = TokenDataset::open(config_.data.path);
  if (!config_.data.validation_path.empty())
    data_.validation = TokenDataset::open(config_.data.validation_path);
  else if (data_.training->has_validation())
    data_.validation = TokenDataset::open(config_.data.path, Split::validation);
  const std::int64_t vocab = data_.training->vocab_size();
  std::int64_t& ours = config_.model.vocab_size;
  if (ours == 0) {
    check(vocab > 0, "config",
          "model.vocab_size: {} does not say its vocabulary size, so the configuration must",
          config_.data.path.string());
    ours = vocab;
  }
  check(vocab <= ours, "config", "model.vocab_size: {} has {} token ids, expected at least as many, got {}",
        config_.data.path.string(), vocab, ours);
  check(config_.train.validate_every == 0 || data_.validation, "config",
        "train.validate_every = {}: there is no validation data: set data.validation_path, or prepare with "
        "--validation-fraction",
        config_.train.validate_every);
  data_.training->limit_vocab(ours);
  if (data_.validation) data_.validation->limit_vocab(ours);
  for (const TokenDataset* data : {data_.training.get(), data_.validation.get()})
    check(
        data == nullptr || data->size() > config_.train.seq_len, "data",
        "{}: expected at least the {} tokens of one sample of train.seq_len = {} and its last target, got {}",
        data == nullptr ? "" : data->path().string(), config_.train.seq_len + 1, config_.train.seq_len,
        data == nullptr ? 0 : data->size());
  order_.emplace(data_.training->size(), config_.train.seq_len,
                 static_cast<std::uint64_t>(config_.train.seed));
}

void Trainer::resume() {
  const CheckpointConfig& c = config_.checkpoint;
  if (c.resume == "auto") {
    std::string first_problem;
    for (const std::filesystem::path& folder : list_checkpoints(world_, c.path)) {
      const auto pass_over = [&](const Error& error) {  // damaged: there may be an older one
        if (first_problem.empty()) first_problem = error.what();
        if (speaks()) fmt::print(stderr, "warning: {} is passed over: {}\n", folder.string(), error.what());
      };
      std::optional<Checkpoint> found;
      try {
        found.emplace(open_checkpoint(world_, folder));
      } catch (const Error& error) {
        pass_over(error);
        continue;
      }
      check_fits(*found);  // one that is whole but does not fit is the user's mistake
      try {
        return take_over(*found);
      } catch (const Error& error) {
        pass_over(error);
      }
    }
    check(first_problem.empty(), "checkpoint",
          "{}: none of the checkpoints can be read, the newest because of {}; move them away to start anew",
          c.path.string(), first_problem);
  } else if (c.resume != "none") {
    const Checkpoint checkpoint = open_checkpoint(world_, c.resume);
    check_fits(checkpoint);
    take_over(checkpoint);
    return;
  }
  engine_->initialise();
}

void Trainer::check_fits(const Checkpoint& checkpoint) const {
  check_same_model(checkpoint.config().model, config_.model, checkpoint.folder().string());
  const std::int64_t seed = checkpoint.config().train.seed;
  check(seed == config_.train.seed, "checkpoint",
        "{}: train.seed is {} there and {} here: the order of the data would change",
        checkpoint.folder().string(), seed, config_.train.seed);
}

void Trainer::take_over(const Checkpoint& checkpoint) {
  load_checkpoint(world_, checkpoint, engine_->model().parameters(), engine_->optimizer());
  state_ = checkpoint.state();
  if (speaks()) fmt::print("resumed from {} after step {}\n", checkpoint.folder().string(), state_.step);
}

void Trainer::warn_of_later_checkpoints() const {
  const auto later = list_checkpoints(config_.checkpoint.path, state_.step);
  if (!later.empty())
    fmt::print(stderr,
               "warning: this run starts after step {}, but {} is there: the first checkpoint that is saved "
               "sets it, and any other after that step, aside as *.old\n",
               state_.step, later[0].string());
}

void Trainer::find_peak() {
  const Context& context = session_.context();
  const auto published =
      session_.gpu() ? published_peak_flops(*session_.gpu(), context.dtype) : std::optional<double>();
  peak_is_published_ = published.has_value();
  const Tensor peak = context.empty_host({1}, DType::f64);
  *peak.ptr<double>() =
      published ? *published : measure_peak_flops(context);  // all at once: ranks share cores
  world_.all_reduce("peak", peak);
  peak_flops_ = *peak.ptr<double>();
}

void Trainer::print_start() {
  std::vector<std::string> places;
  if (session_.gpu()) places = gather_text(world_, "places", session_.place());
  if (!speaks()) return;
  const std::vector<std::int64_t> transpoints = resolve_transpoints(config_.model, config_.train.seq_len);
  fmt::print("{}\n", config_.to_ini());
  fmt::print("{} parameters, TransPoints {} of {} tokens\n", parameter_count(config_.model),
             fmt::join(transpoints, ","), config_.train.seq_len);
  fmt::print("{} training tokens, {} validation tokens; {} tokens a step\n", data_.training->size(),
             data_.validation ? data_.validation->size() : 0,
             config_.train.global_batch * config_.train.seq_len);
  const ParallelConfig& p = config_.parallel;
  fmt::print("{} rank{}: tp {} x cp {} x dp {} x pp {}; {} micro-batch{} of {} a rank and step\n",
             world_.size(), world_.size() == 1 ? "" : "s", p.tp, p.cp, p.dp, p.pp, engine_->micro_batches(),
             engine_->micro_batches() == 1 ? "" : "es", config_.train.micro_batch);
  for (std::size_t rank = 0; rank < places.size(); ++rank) fmt::print("rank {}: {}\n", rank, places[rank]);
  const Stream& stream = session_.context().stream;
  const std::string peak = peak_is_published_ ? "MFU counts a peak of" : "measured peak";
  if (const auto& gpu = session_.gpu())
    fmt::print("{}, {}, {} free; {}; {} {:.0f} TFLOP/s\n\n", to_string(stream.device), gpu->name,
               format_bytes(gpu->free_bytes), to_string(session_.context().dtype), peak, peak_flops_ / 1e12);
  else
    fmt::print("{}, {} thread{} a rank, {}; {} {:.0f} GFLOP/s\n\n", to_string(stream.device), stream.threads,
               stream.threads == 1 ? "" : "s", to_string(session_.context().dtype), peak, peak_flops_ / 1e9);
  std::fflush(stdout);
}

}  // namespace transmamba
