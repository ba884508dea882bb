// Another program, started and waited for.
#pragma once

#include <filesystem>
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

/// What a failed run of ours had to say: the last line "transmamba: .." of its errors, without that word, or
/// else their last line; empty where they are.
std::string last_error(const std::filesystem::path& errors);

}  // namespace transmamba
