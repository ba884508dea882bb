// The subcommands of `transmamba`, a file each. They take the words after their name and return the exit
// code.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace transmamba {

int prepare(std::vector<std::string> arguments);
int train(std::vector<std::string> arguments);
int verify(std::vector<std::string> arguments);
int generate(std::vector<std::string> arguments);
int plan(std::vector<std::string> arguments);
int bench(std::vector<std::string> arguments);

inline bool is_help(const std::string& word) { return word == "--help" || word == "-h" || word == "help"; }

/// To stdout with exit code 0 where help was asked for, to stderr with exit code 2 otherwise.
int print_usage(std::string_view usage, const std::vector<std::string>& arguments);

}  // namespace transmamba
