// Another program, started and waited for.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace transmamba {

/// Where `program` would be found: itself if it has a slash, or else in PATH. Empty: nowhere.
std::filesystem::path find_program(const std::string& program);

/// This program's own file.
std::filesystem::path this_program();

struct ChildResult {
  bool ok = false;
  std::string ending;  ///< "exit code 1", "signal 9 (Killed)", "stopped after 10 s"
};

/// Runs `words` with its output in two files, until it ends or `seconds` are over, when it is asked to end,
/// and five seconds later killed. It ends too where this process does. Throws Error where it cannot be
/// started.
ChildResult run_child(const std::vector<std::string>& words, const std::filesystem::path& output,
                      const std::filesystem::path& errors, double seconds);

struct Captured : ChildResult {
  std::string out, err;
};

/// The same with its output in strings.
Captured capture(const std::vector<std::string>& words, double seconds);

struct ShownResult : ChildResult {
  int code = 0;        ///< its exit code, or 128 and the number of the signal that ended it
  bool asked = false;  ///< to end, by a signal to this process
};

/// Runs `words` until it ends, with its output and errors passed on to ours as they come; `see` gets each
/// line of them too, without its end, and whether it is an error; where it says false, the child gets
/// SIGTERM: nothing will come of it. A terminal's Ctrl-C does not reach it by itself: at the first SIGINT,
/// SIGTERM or SIGUSR1 to this process it gets SIGUSR1, at each further one, as StopSignals counts them,
/// SIGTERM.
ShownResult run_shown(const std::vector<std::string>& words,
                      const std::function<bool(const std::string& line, bool is_error)>& see);

/// Words as a shell would take them.
std::string shell_words(const std::vector<std::string>& words);

/// What a failed run of ours had to say: the last line "transmamba: .." of its errors, without that word, or
/// else their last line; empty where they are.
std::string last_error(const std::filesystem::path& errors);

}  // namespace transmamba
