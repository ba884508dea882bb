#include "launch/profiler.h"

#include <algorithm>
#include <array>
#include <utility>

#include "core/durable_rename.h"
#include "core/machine.h"
#include "launch/profile_report.h"
#include "launch/trace.h"
#include "parallel/comm/agree.h"

namespace transmamba {

Profiler::Profiler(const Config& config, Communicator& world, const Stream& compute)
    : config_(config), world_(world), profile_(compute) {
  world_.recorder().set_profile(&profile_);
}

Profiler::~Profiler() { world_.recorder().set_profile(nullptr); }

std::filesystem::path Profiler::folder() const {
  return config_.log.profile_path.empty() ? config_.checkpoint.path : config_.log.profile_path;
}

void Profiler::plan(std::int64_t now, MetricsLog* log) {
  log_ = log;
  const std::int64_t first = now + LogConfig::kProfileWarmUp, steps = config_.log.profile;
  if (first + steps > config_.train.steps) {  // it was resumed near its end, which is no mistake
    if (log_)
      log_->note(fmt::format("no profile: of the {} steps that are left {} would warm up",
                             config_.train.steps - now, LogConfig::kProfileWarmUp));
    return;
  }
  first_ = first;
  agree(world_, "profile", [&] {
    if (world_.rank() > 0 || folder().empty()) return;
    std::error_code ignored;  // what follows says what is wrong
    std::filesystem::create_directories(folder(), ignored);
    for (const char* name : {"profile.json", "trace.json"}) check_writable(folder() / name);
  });
  if (log_)
    log_->note(fmt::format("profiling steps {} to {}{}", first + 1, first + steps,
                           config_.train.device == "cuda" && world_.size() == 1 && config_.train.cuda_graphs
                               ? ", without CUDA graphs: what runs in a graph cannot be timed part by part"
                               : ""));
}

bool Profiler::begin_step(std::int64_t step) {
  if (first_ < 0 || step < first_ || step >= first_ + config_.log.profile) return false;
  if (step == first_) {
    early_ = measure_clock_offset(world_, Profile::now);
    std::array<double, 1> origin{Profile::now()};
    world_.broadcast("clocks", View(reinterpret_cast<std::byte*>(origin.data()), DType::f64, {1}), 0);
    origin_ = origin[0];
    profile_.begin();
  }
  next_ = step + 1;
  profile_.record();
  return true;
}

void Profiler::report() {
  const std::int64_t first = std::exchange(first_, -1);
  profile_.end();
  const ClockOffset late = measure_clock_offset(world_, Profile::now);
  RankProfile mine =
      rank_profile(profile_, [&](double time) { return on_first_clock(early_, late, time) - origin_; });
  mine.clock_offset = late.offset, mine.round_trip = std::max(early_.round_trip, late.round_trip);
  const std::vector<std::string> texts = collect_text(world_, "profile", mine.to_text());
  agree(world_, "profile", [&] {
    if (texts.empty()) return;
    std::vector<RankProfile> ranks;
    for (const std::string& text : texts) ranks.push_back(RankProfile::from_text(text));
    const ProfileSummary summary = summarise(
        ranks, first + 1, Machine::of(config_.parallel.machine, config_.train.device), config_.parallel);
    if (log_) log_->note(fmt::format("\n{}", format_table(summary)));
    if (folder().empty()) {
      if (log_) log_->note("no trace.json: log.profile_path or checkpoint.path would say where");
      return;
    }
    try {
      write_durably(folder() / "profile.json", to_json(summary));
      write_durably(folder() / "trace.json", chrome_trace(ranks));
    } catch (const Error& error) {  // a full disk, in the midst of a run
      if (log_) log_->warn(fmt::format("{}; training goes on", error.what()));
      return;
    }
    if (log_) log_->note(fmt::format("wrote profile.json and trace.json to {}", folder().string()));
  });
}

}  // namespace transmamba
