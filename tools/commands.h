// The subcommands of `transmamba`, a file each. They take the process they run in and the words after their
// name, and return the exit code.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "launch/process.h"

namespace transmamba {

int prepare(Process& process, std::vector<std::string> arguments);
int train(Process& process, std::vector<std::string> arguments);
int verify(Process& process, std::vector<std::string> arguments);
int generate(Process& process, std::vector<std::string> arguments);
int plan(Process& process, std::vector<std::string> arguments);
int bench(Process& process, std::vector<std::string> arguments);
int scale(Process& process, std::vector<std::string> arguments);
int launch(Process& process, std::vector<std::string> arguments);
int bench_kernels(Process& process, const std::vector<std::string>& arguments);  ///< of `bench kernels`
int bench_comm(Process& process, const std::vector<std::string>& arguments);     ///< of `bench comm`
int bench_handoff(Process& process, const std::vector<std::string>& arguments);  ///< of `bench handoff`

inline bool is_help(const std::string& word) { return word == "--help" || word == "-h" || word == "help"; }

/// To stdout with exit code 0 where help was asked for, to stderr with exit code 2 otherwise; rank 0 prints.
int print_usage(const Process& process, std::string_view usage, const std::vector<std::string>& arguments);

}  // namespace transmamba
