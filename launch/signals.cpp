#include "launch/signals.h"

#include <time.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>

#include "launch/exit_codes.h"

namespace transmamba {
namespace {

constexpr std::array<int, 3> kSignals = {SIGTERM, SIGINT, SIGUSR1};
constexpr std::int64_t kTogether = 500'000'000;  // ns

// What a handler may touch.
std::atomic<int> first = 0, counted = 0;
std::atomic<std::int64_t> last_at = 0;  // of those that count
std::atomic<bool> second_ends = true;
static_assert(std::atomic<std::int64_t>::is_always_lock_free);
std::array<struct sigaction, kSignals.size()> before;

std::int64_t now() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

void set_all(void (*handler)(int), int flags, bool keeps) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  sigemptyset(&action.sa_mask);
  for (const int number : kSignals) sigaddset(&action.sa_mask, number);
  for (std::size_t i = 0; i < kSignals.size(); ++i)
    sigaction(kSignals[i], &action, keeps ? &before[i] : nullptr);
}

extern "C" void remember_signal(int number) {
  const std::int64_t time = now();
  std::int64_t last = last_at;
  if (last != 0 && time - last <= kTogether) return;
  // Another thread may handle a second signal before this one knows of it: it is together with this one.
  if (!last_at.compare_exchange_strong(last, time)) return;
  if (counted++ == 0)
    first = number;
  else if (second_ends)
    _exit(kExitSignal + number);
}

}  // namespace

StopSignals::StopSignals(Second second) {
  first = 0, counted = 0, last_at = 0, second_ends = second == Second::ends;
  set_all(remember_signal, second_ends ? SA_RESTART : 0, true);
}

StopSignals::~StopSignals() {
  if (ignored_) return;
  for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &before[i], nullptr);
}

int StopSignals::number() const { return first; }
int StopSignals::count() const { return counted; }

void StopSignals::ignore() {
  ignored_ = true;
  set_all(SIG_IGN, 0, false);
}

}  // namespace transmamba
