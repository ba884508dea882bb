#include "launch/child_process.h"

#include <fcntl.h>
#include <fmt/ranges.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <thread>

#include "kernels/check.h"
#include "launch/child_start.h"

namespace transmamba {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kWhere = "launch";
constexpr double kGrace = 5;  // seconds between asking and killing

int open_for_child(const std::filesystem::path& file) {
  const int fd = open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  check(fd >= 0, kWhere, "{}: cannot write: {}", file.string(), std::strerror(errno));
  return fd;
}

struct Descriptor {
  explicit Descriptor(int d) : fd(d) {}
  ~Descriptor() { close(fd); }
  Descriptor(const Descriptor&) = delete;
  int fd;
};

/// Between fork and exec nothing may be called that takes a lock or memory.
[[noreturn]] void become(char* const* words, const char* program, int output, int errors, pid_t parent,
                         bool own_group) {
  if (own_group) setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(127);  // it ended before it was heard
  signal(SIGXFSZ, SIG_DFL);             // which run_command ignores
  const int nothing = open("/dev/null", O_RDONLY);
  dup2(nothing, STDIN_FILENO), dup2(output, STDOUT_FILENO), dup2(errors, STDERR_FILENO);
  execv(program, words);
  _exit(127);
}

std::string ending_of(int status) {
  if (WIFSIGNALED(status))
    return fmt::format("signal {} ({})", WTERMSIG(status), strsignal(WTERMSIG(status)));
  return fmt::format("exit code {}", WEXITSTATUS(status));
}

}  // namespace

pid_t start_child(const std::vector<std::string>& words, int output, int errors, bool own_group) {
  const std::filesystem::path program = find_program(words.at(0));
  check(!program.empty(), kWhere, "there is no program {} to start", words[0]);
  std::vector<char*> pointers;
  pointers.reserve(words.size() + 1);
  for (const std::string& word : words) pointers.push_back(const_cast<char*>(word.c_str()));
  pointers.push_back(nullptr);
  const pid_t parent = getpid(), child = fork();
  if (child == 0) become(pointers.data(), program.c_str(), output, errors, parent, own_group);
  check(child > 0, kWhere, "cannot start {}: {}", program.string(), std::strerror(errno));
  return child;
}

bool has_ended(pid_t child, const std::string& program, int& status) {
  const pid_t ended = waitpid(child, &status, WNOHANG);
  check(ended >= 0 || errno == EINTR, kWhere, "waiting for {}: {}", program, std::strerror(errno));
  return ended == child;
}

ChildResult result_of(int status) {
  return {WIFEXITED(status) && WEXITSTATUS(status) == 0, ending_of(status)};
}

std::filesystem::path find_program(const std::string& program) {
  const auto runs = [](const std::filesystem::path& file) {
    return access(file.c_str(), X_OK) == 0 && !std::filesystem::is_directory(file);
  };
  if (program.find('/') != std::string::npos) return runs(program) ? program : "";
  const char* path = std::getenv("PATH");
  std::istringstream folders(path ? path : "/usr/bin:/bin");
  for (std::string folder; std::getline(folders, folder, ':');) {
    std::filesystem::path file = std::filesystem::path(folder.empty() ? "." : folder) / program;
    if (runs(file)) return file;
  }
  return {};
}

std::filesystem::path this_program() {
  std::error_code error;
  std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  check(!error, kWhere, "/proc/self/exe: {}", error.message());
  return program;
}

ChildResult run_child(const std::vector<std::string>& words, const std::filesystem::path& output,
                      const std::filesystem::path& errors, double seconds) {
  const Descriptor out(open_for_child(output)), err(open_for_child(errors));
  const pid_t child = start_child(words, out.fd, err.fd, /*own_group=*/false);
  const auto begin = Clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - begin).count(); };
  bool asked = false;
  for (int status = 0;;) {
    if (has_ended(child, words[0], status))
      return asked ? ChildResult{false, fmt::format("stopped after {:.0f} s", seconds)} : result_of(status);
    if (elapsed() > seconds && !asked) asked = true, kill(child, SIGTERM);
    if (elapsed() > seconds + kGrace) kill(child, SIGKILL);
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

Captured capture(const std::vector<std::string>& words, double seconds) {
  std::string folder = (std::filesystem::temp_directory_path() / "transmamba-XXXXXX").string();
  check(mkdtemp(folder.data()) != nullptr, kWhere, "{}: {}", folder, std::strerror(errno));
  const std::filesystem::path out = folder + "/out", err = folder + "/err";
  const auto text_of = [](const std::filesystem::path& file) {
    std::ifstream in(file, std::ios::binary);
    return std::string{std::istreambuf_iterator<char>(in), {}};
  };
  Captured result;
  static_cast<ChildResult&>(result) = run_child(words, out, err, seconds);
  result.out = text_of(out), result.err = text_of(err);
  std::filesystem::remove_all(folder);
  return result;
}

std::string shell_words(const std::vector<std::string>& words) {
  std::vector<std::string> quoted;
  for (const std::string& word : words) {
    const bool plain = !word.empty() && word.find_first_not_of(
                                            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                            "0123456789_-+=./:,@%") == std::string::npos;
    std::string inside;
    for (const char c : word) inside += c == '\'' ? "'\\''" : std::string(1, c);
    quoted.push_back(plain ? word : "'" + inside + "'");
  }
  return fmt::format("{}", fmt::join(quoted, " "));
}

std::string last_error(const std::filesystem::path& errors) {
  constexpr std::string_view kOurs = "transmamba: ";
  std::ifstream in(errors);
  std::string last, ours;
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with(kOurs)) ours = line.substr(kOurs.size());
    if (line.find_first_not_of(" \t-=*") != std::string::npos) last = line;
  }
  return ours.empty() ? last : ours;
}

}  // namespace transmamba
