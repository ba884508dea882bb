// A child whose output is passed on while it runs, and that hears of our signals.
#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

#include "kernels/check.h"
#include "launch/child_process.h"
#include "launch/child_start.h"

namespace transmamba {
namespace {

constexpr std::array kSignals = {SIGINT, SIGTERM, SIGUSR1};
volatile std::sig_atomic_t g_signals = 0;

/// Counts the signals while it lives.
class SignalCount {
 public:
  SignalCount() {
    g_signals = 0;
    struct sigaction act {};
    act.sa_handler = [](int) { g_signals = g_signals + 1; };
    for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &act, &before_[i]);
  }
  ~SignalCount() {
    for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &before_[i], nullptr);
  }
  SignalCount(const SignalCount&) = delete;
  int count() const { return g_signals; }

 private:
  std::array<struct sigaction, kSignals.size()> before_{};
};

using See = std::function<void(const std::string&)>;

/// What a child writes to one of its streams.
class Stream {
 public:
  Stream(int to, See see) : to_(to), see_(std::move(see)) {
    std::array<int, 2> ends{};
    check(pipe2(ends.data(), O_CLOEXEC) == 0, "launch", "pipe: {}", std::strerror(errno));
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    from_ = ends[0], child_ = ends[1];
  }
  ~Stream() { close_child(), close(from_); }
  Stream(const Stream&) = delete;
  int from() const { return open_ ? from_ : -1; }
  int child() const { return child_; }
  void close_child() {
    if (child_ >= 0) close(child_);
    child_ = -1;
  }
  /// Passes on what is there.
  void pass_on() {
    std::array<char, 1 << 16> bytes{};
    for (ssize_t got = 0; open_ && (got = read(from_, bytes.data(), bytes.size())) >= 0;) {
      open_ = got > 0;
      for (ssize_t done = 0, wrote = 0; done < got && wrote >= 0; done += wrote)
        wrote = write(to_, bytes.data() + done, static_cast<std::size_t>(got - done));
      line_.append(bytes.data(), static_cast<std::size_t>(got));
      for (std::size_t end; (end = line_.find('\n')) != std::string::npos; line_.erase(0, end + 1))
        see_(line_.substr(0, end));
    }
  }

 private:
  int to_, from_ = -1, child_ = -1;
  See see_;
  bool open_ = true;
  std::string line_;
};

}  // namespace

ShownResult run_shown(const std::vector<std::string>& words,
                      const std::function<void(const std::string&, bool)>& see) {
  std::fflush(stdout);
  const SignalCount signals;
  Stream out(STDOUT_FILENO, [&](const auto& line) { see(line, false); });
  Stream err(STDERR_FILENO, [&](const auto& line) { see(line, true); });
  const pid_t child = start_child(words, out.child(), err.child(), /*own_group=*/true);
  out.close_child(), err.close_child();
  int status = 0, told = 0;
  for (bool ended = false; !ended;) {
    std::array<pollfd, 2> wait = {{{out.from(), POLLIN, 0}, {err.from(), POLLIN, 0}}};
    poll(wait.data(), wait.size(), 50);
    for (; told < signals.count(); ++told) kill(child, told == 0 ? SIGUSR1 : SIGTERM);
    ended = has_ended(child, words[0], status);
    out.pass_on(), err.pass_on();  // after its end once more: what it wrote last
  }
  ShownResult result;
  static_cast<ChildResult&>(result) = result_of(status);
  result.code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  result.asked = told > 0;
  return result;
}

}  // namespace transmamba
