#include "parallel/comm/recorder.h"

namespace transmamba {

Traffic& Traffic::operator+=(const Traffic& other) {
  calls += other.calls, bytes += other.bytes;
  seconds += other.seconds, exposed += other.exposed;
  return *this;
}

void Recorder::add(std::string_view axis, std::string_view purpose, const Traffic& traffic) {
  const std::lock_guard lock(mutex_);
  const auto found = table_.find(std::pair(axis, purpose));
  if (found != table_.end())
    found->second += traffic;
  else
    table_.emplace(Key(axis, purpose), traffic);
}

std::map<Recorder::Key, Traffic> Recorder::table() const {
  const std::lock_guard lock(mutex_);
  return {table_.begin(), table_.end()};
}

Traffic Recorder::total(std::string_view purpose) const {
  const std::lock_guard lock(mutex_);
  Traffic sum;
  for (const auto& [key, traffic] : table_)
    if (key.second == purpose) sum += traffic;
  return sum;
}

void Recorder::reset() {
  const std::lock_guard lock(mutex_);
  table_.clear();
}

}  // namespace transmamba
