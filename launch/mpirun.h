// All ranks of a run, started by mpirun, and started again after a crash.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace transmamba {

/// Where ranks run: a host's name and how many of them.
struct HostSlots {
  std::string name;
  int ranks = 0;
  bool operator==(const HostSlots&) const = default;
};

/// "a:4,b:4". Throws Error, naming the word, for what is no list of that kind.
std::vector<HostSlots> parse_hosts(const std::string& list);
/// The same of a hostfile of mpirun's: "a slots=4" a line, and # comments.
std::vector<HostSlots> read_hostfile(const std::filesystem::path& file);

/// mpirun's words before those of the program: for `ranks` ranks here, where `hosts` is empty. Several hosts
/// get this one's working folder and what of the environment libraries read there.
std::vector<std::string> mpirun_words(int ranks, const std::vector<HostSlots>& hosts);

/// How one start of all ranks went.
struct Attempt {
  int code = 0;          ///< mpirun's
  std::string ending{};  ///< "exit code 1"
  double seconds = 0;
  bool stepped = false;        ///< it trained a step: a line of its output says so
  bool killed = false;         ///< a signal ended one of its ranks, says mpirun
  bool asked = false;          ///< a signal to this process asked it to end
  std::int64_t last_step = 0;  ///< whose line came last; 0: none
  std::string death{};         ///< that rank's, as read_death() has it
  std::string errors{};        ///< what it wrote to stderr, the last of it
};

/// Of mpirun's line about a rank that a signal has ended: "rank 2 on host a was killed by signal 9 (Killed)";
/// empty of other lines.
std::string read_death(const std::string& line);

/// Whether another start may do better than this one: not after success, an orderly stop, too many bad steps
/// or a mistake in what was asked for. `stepped_before`: an earlier attempt took a step, so that what was
/// asked for is possible.
bool is_worth_restarting(const Attempt& attempt, bool stepped_before);

/// Starts `first` and, while is_worth_restarting, `again`, up to `max_restarts` times; says on stderr which
/// start it is, why, and how long the one before had lasted; of a rank that was killed, which one, and after
/// which step. Returns the last exit code. Where that says nothing else a line explains what mpirun met.
int run_with_restarts(const std::vector<std::string>& first, const std::vector<std::string>& again,
                      std::int64_t max_restarts);

/// What stands behind mpirun's words, and what to do, with the host where it names one; empty where that is
/// not known.
std::string explain_mpirun(const std::string& errors);

}  // namespace transmamba
