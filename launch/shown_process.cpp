// A child whose output is passed on while it runs, and that hears of our signals.
#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

#include "kernels/check.h"
#include "launch/child_process.h"
#include "launch/child_start.h"
#include "launch/signals.h"

namespace transmamba {
namespace {

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
  /// Passes on what is there. `interrupted` is called where a signal came while it waited for a reader.
  template <class Interrupted>
  void pass_on(const Interrupted& interrupted) {
    std::array<char, 1 << 16> bytes{};
    while (open_) {
      const ssize_t got = read(from_, bytes.data(), bytes.size());
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return;  // nothing more for now
      open_ = got > 0;
      for (ssize_t done = 0, wrote = 0; done < got; done += std::max<ssize_t>(wrote, 0)) {
        wrote = write(to_, bytes.data() + done, static_cast<std::size_t>(got - done));
        if (wrote >= 0) continue;
        if (errno == EINTR)
          interrupted();
        else if (errno == EAGAIN)  // a pipe that its other users do not wait for either
          wait_for_reader(), interrupted();
        else
          break;  // a disk that is full, say: what the child does is worth more than what it says
      }
      line_.append(bytes.data(), static_cast<std::size_t>(got));
      for (std::size_t end; (end = line_.find('\n')) != std::string::npos; line_.erase(0, end + 1))
        see_(line_.substr(0, end));
    }
  }

  /// What comes next of ours is to begin a line.
  void end_line() {
    if (line_.empty()) return;
    if (write(to_, "\n", 1) == 1) see_(std::exchange(line_, {}));
  }

 private:
  void wait_for_reader() const {
    pollfd reader{to_, POLLOUT, 0};
    poll(&reader, 1, 50);
  }
  int to_, from_ = -1, child_ = -1;
  See see_;
  bool open_ = true;
  std::string line_;
};

}  // namespace

ShownResult run_shown(const std::vector<std::string>& words,
                      const std::function<bool(const std::string&, bool)>& see) {
  std::fflush(stdout);
  const StopSignals signals(StopSignals::Second::counts);
  bool goes_on = true;
  Stream out(STDOUT_FILENO, [&](const auto& line) { goes_on &= see(line, false); });
  Stream err(STDERR_FILENO, [&](const auto& line) { goes_on &= see(line, true); });
  const pid_t child = start_child(words, out.child(), err.child(), /*own_group=*/true);
  out.close_child(), err.close_child();
  int status = 0, told = 0;
  bool ended = false;
  const auto tell = [&] {
    for (; !ended && told < signals.count(); ++told) kill(child, told == 0 ? SIGUSR1 : SIGTERM);
    if (!ended && !std::exchange(goes_on, true)) kill(child, SIGTERM);
  };
  while (!ended) {
    std::array<pollfd, 2> wait = {{{out.from(), POLLIN, 0}, {err.from(), POLLIN, 0}}};
    poll(wait.data(), wait.size(), 50);
    tell();
    ended = has_ended(child, words[0], status);
    out.pass_on(tell), err.pass_on(tell);  // after its end once more: what it wrote last
  }
  err.end_line();
  ShownResult result;
  static_cast<ChildResult&>(result) = result_of(status);
  result.code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  result.asked = signals.count() > 0;  // also one that came too late to be told
  return result;
}

}  // namespace transmamba
