#include "core/profile.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <utility>

#include "kernels/check.h"

namespace transmamba {

std::string name_of(const RegionSpan& region) {
  std::string name;
  const auto add = [&](const std::string& word) { name += (name.empty() ? "" : " ") + word; };
  for (const Label& label : {region.first, region.second})
    if (label.of) add(fmt::format("{} {}", label.of, label.number));
  if (*region.family != '\0') add(region.family);
  return name;
}

void CallSpan::begins_on(const Stream& stream) { begin = profile_->mark(stream), on_gpu_ = true; }
void CallSpan::begins_in(const Stream& compute) {
  begins_on(compute);
  is_in_compute_ = true;
  region_ = profile_->open_region();
}
void CallSpan::ends_on(const Stream& stream) {
  end = profile_->mark(stream);
  is_awaited_ |= is_in_compute_;
}
void CallSpan::is_awaited_by(const Stream& compute) {
  arrival_ = profile_->mark(compute), is_awaited_ = true;
  region_ = profile_->open_region();
}

void CallSpan::ended(double begun, double ended, double waited) {
  if (on_gpu_) return;
  begin = {begun}, end = {ended}, exposed = waited;
  is_complete = true;
}

Profile::Profile(const Stream& compute) : compute_(compute) {}

double Profile::now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Mark Profile::mark(const Stream& stream) {
  if (stream.device == Device::cpu) return {now()};
  if (free_.empty()) {
    free_.push_back(static_cast<int>(events_.size()));
    events_.emplace_back(/*timed=*/true);
  }
  const int event = free_.back();
  free_.pop_back();
  events_[static_cast<std::size_t>(event)].record(stream);
  return {0, event, static_cast<int>(steps_.size()) - 1};
}

/// Single precision is exact to parts of a microsecond only within a step.
void Profile::resolve(Mark& mark) {
  if (mark.event < 0) return;
  const auto step = static_cast<std::size_t>(mark.step);
  const gpu::Event& event = events_[static_cast<std::size_t>(mark.event)];
  mark.seconds = anchored_ + step_seconds_[step] + event.seconds_since(steps_[step]);
  free_.push_back(std::exchange(mark.event, -1));
}

/// now() as the GPU passes `event`: of several tries the one that the host saw most quickly.
double Profile::tie(gpu::Event& event) const {
  constexpr int kTries = 20;
  gpu::synchronize(compute_);
  double best = std::numeric_limits<double>::infinity(), at = 0;
  for (int i = 0; i < kTries; ++i) {
    gpu::Event trial(/*timed=*/true);
    const double before = now();
    trial.record(compute_);
    while (!trial.passed()) continue;
    const double after = now();
    if (after - before < best) best = after - before, at = (before + after) / 2, event = std::move(trial);
  }
  return at;
}

void Profile::begin() {
  if (!on_gpu()) return;
  constexpr int kEvents = 4096;  // of some layers: made here, not in a step that is timed
  for (int i = 0; i < kEvents; ++i) free_.push_back(i), events_.emplace_back(/*timed=*/true);
  anchors_.emplace_back(/*timed=*/true);
  anchored_ = tie(anchors_[0]);
}

void Profile::record() {
  check(!records_, "profile", "it records already");
  if (on_gpu()) {
    steps_.emplace_back(/*timed=*/true);
    steps_.back().record(compute_);
  }
  records_ = true;
}

void Profile::pause() {
  records_ = false;
  check(open_.empty(), "profile", "a region is still open");
  if (on_gpu()) {
    gpu::synchronize(compute_);
    step_seconds_.push_back(steps_.back().seconds_since(anchors_[0]));
  }
  for (std::size_t i = resolved_; i < regions_.size(); ++i)
    resolve(regions_[i].begin), resolve(regions_[i].end);
  for (std::size_t i = resolved_; i < regions_.size(); ++i)
    if (const RegionSpan& region = regions_[i]; region.parent >= 0)
      regions_[static_cast<std::size_t>(region.parent)].nested += region.seconds();
  resolved_ = regions_.size();
  resolve_calls();
}

void Profile::resolve_calls() {
  for (const auto& call : calls_) {
    if (call->is_complete || !call->is_awaited_) continue;
    if (!events_[static_cast<std::size_t>(call->end.event)].passed()) continue;
    resolve(call->begin), resolve(call->end), resolve(call->arrival_);
    const Mark& arrival = call->is_in_compute_ ? call->begin : call->arrival_;
    call->exposed = std::max(0.0, call->end.seconds - arrival.seconds);
    if (call->region_ >= 0) regions_[static_cast<std::size_t>(call->region_)].exposed += call->exposed;
    call->is_complete = true;
  }
}

double Profile::take_waits() {
  check(!records_ && regions_.empty(), "profile", "it records more than calls");
  resolve_calls();
  double seconds = 0;
  std::erase_if(calls_, [&](const auto& call) {
    if (call->is_complete) seconds += call->exposed;
    return call->is_complete;
  });
  if (calls_.empty()) steps_.clear(), step_seconds_.clear();
  return seconds;
}

void Profile::end() {
  check(!records_, "profile", "it still records");
  if (on_gpu()) gpu::synchronize(compute_);
  resolve_calls();
  std::erase_if(calls_, [](const auto& call) { return !call->is_complete; });
  if (!on_gpu()) return;
  gpu::Event last(/*timed=*/true);
  const double host = tie(last) - anchored_, device = last.seconds_since(anchors_[0]);
  const double drift = device > 0 ? host / device : 1;  // parts in a million
  const auto correct = [&](Mark& mark) { mark.seconds = anchored_ + drift * (mark.seconds - anchored_); };
  for (RegionSpan& region : regions_)
    if (!region.on_host) correct(region.begin), correct(region.end);
  for (const auto& call : calls_)
    if (call->on_gpu_) correct(call->begin), correct(call->end);
}

void Profile::open(const char* family, Label first, Label second, bool on_host) {
  RegionSpan& region = regions_.emplace_back();
  region.family = family, region.first = first, region.second = second;
  region.on_host = on_host && on_gpu();
  region.parent = open_.empty() || region.on_host ? -1 : open_.back();
  open_.push_back(static_cast<int>(regions_.size()) - 1);
  if (on_gpu()) gpu::open_range(name_of(region));
  region.begin = region.on_host ? Mark{now()} : mark(compute_);
}

void Profile::close() noexcept {
  RegionSpan& region = regions_[static_cast<std::size_t>(open_.back())];
  open_.pop_back();
  if (on_gpu()) gpu::close_range();
  try {
    region.end = region.on_host ? Mark{now()} : mark(compute_);
  } catch (const Error&) {  // NOLINT: the GPU has failed, which its next call says
  }
}

std::shared_ptr<CallSpan> Profile::call(std::string axis, std::string_view purpose, const char* kind) {
  if (!records_) return nullptr;
  if (on_gpu()) gpu::open_range(fmt::format("{} {}: {}", axis, kind, purpose));
  auto span = std::make_shared<CallSpan>();
  span->axis = std::move(axis), span->purpose = purpose, span->kind = kind;
  span->profile_ = this;
  return calls_.emplace_back(std::move(span));
}

void Profile::call_is_started() {
  if (on_gpu()) gpu::close_range();
}

void Profile::charge(double seconds) {
  if (records_ && !on_gpu() && !open_.empty())
    regions_[static_cast<std::size_t>(open_.back())].exposed += seconds;
}

}  // namespace transmamba
