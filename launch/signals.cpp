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
std::atomic<int> first = 0;
std::atomic<std::int64_t> first_at = 0;
static_assert(std::atomic<std::int64_t>::is_always_lock_free);
std::array<struct sigaction, kSignals.size()> before;

std::int64_t now() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

void set_all(void (*handler)(int), bool keeps) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;  // or a signal would break whatever is being read or written
  sigemptyset(&action.sa_mask);
  for (const int number : kSignals) sigaddset(&action.sa_mask, number);
  for (std::size_t i = 0; i < kSignals.size(); ++i)
    sigaction(kSignals[i], &action, keeps ? &before[i] : nullptr);
}

extern "C" void remember_signal(int number) {
  const std::int64_t time = now();
  // The time first: another thread may handle a second signal before this one knows of it.
  if (std::int64_t none = 0; first_at.compare_exchange_strong(none, time))
    first = number;
  else if (time - first_at > kTogether)
    _exit(kExitSignal + number);
}

}  // namespace

StopSignals::StopSignals() {
  first = 0, first_at = 0;
  set_all(remember_signal, true);
}

StopSignals::~StopSignals() {
  if (ignored_) return;
  for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &before[i], nullptr);
}

int StopSignals::number() const { return first; }

void StopSignals::ignore() {
  ignored_ = true;
  set_all(SIG_IGN, false);
}

}  // namespace transmamba
