#include "launch/mpirun.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <fstream>
#include <numeric>
#include <regex>
#include <set>
#include <sstream>
#include <thread>

#include "kernels/check.h"
#include "launch/child_process.h"
#include "launch/exit_codes.h"

namespace transmamba {
namespace {

constexpr auto kWhere = "launch";
constexpr auto kNoPort = "no port available in the range";

int parse_slots(const std::string& what, const std::string& text) {
  int slots = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, slots);
  check(error == std::errc() && stop == end && slots > 0, kWhere, "{}", what);
  return slots;
}

void check_distinct(const std::string& where, const std::vector<HostSlots>& hosts) {
  check(!hosts.empty(), kWhere, "{}: expected at least one host", where);
  std::set<std::string> names;
  for (const HostSlots& host : hosts)
    check(names.insert(host.name).second, kWhere, "{}: host {} is given twice", where, host.name);
}

/// What stands after `label` in its line.
std::string after(const std::string& text, const std::string& label) {
  const std::size_t at = text.find(label);
  if (at == std::string::npos) return {};
  const std::size_t begin = std::min(text.find_first_not_of(' ', at + label.size()), text.size());
  return text.substr(begin, text.find('\n', begin) - begin);
}

/// Of a line of Open MPI's, "[host][[7,1],0][file:line] ..", with this part; empty where others' are in it
/// too.
std::string host_of_line(const std::string& text, const std::string& part) {
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);)
    if (line.starts_with('[') && line.find(part) != std::string::npos &&
        line.find("][[") == line.rfind("][["))
      return line.substr(1, line.find(']') - 1);
  return {};
}

/// Variables that libraries of a rank read, which mpirun takes to other hosts only where it is told.
std::vector<std::string> variables_of_libraries() {
  constexpr std::array<std::string_view, 6> kStarts = {
      "NCCL_", "UCX_", "OMP_", "OPENBLAS_", "LD_LIBRARY_PATH=", "CUDA_"};
  std::vector<std::string> names;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string_view text = *variable;
    if (std::any_of(kStarts.begin(), kStarts.end(), [&](auto start) { return text.starts_with(start); }))
      names.emplace_back(text.substr(0, text.find('=')));
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

std::vector<HostSlots> parse_hosts(const std::string& list) {
  const std::string wanted =
      fmt::format("--hosts: expected names and numbers of ranks such as a:4,b:4, got \"{}\"", list);
  std::vector<HostSlots> hosts;
  std::istringstream in(list);
  for (std::string word; std::getline(in, word, ',');) {
    const std::size_t colon = word.rfind(':');
    check(colon != std::string::npos && colon > 0, kWhere, "{}", wanted);
    hosts.push_back({word.substr(0, colon), parse_slots(wanted, word.substr(colon + 1))});
  }
  check(!list.ends_with(','), kWhere, "{}", wanted);
  check_distinct("--hosts", hosts);
  return hosts;
}

std::vector<HostSlots> read_hostfile(const std::filesystem::path& file) {
  std::ifstream in(file);
  check(in.is_open() && !std::filesystem::is_directory(file), kWhere, "--hostfile: cannot read {}",
        file.string());
  std::vector<HostSlots> hosts;
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line.substr(0, line.find('#')));
    std::string name, slots, more;
    if (!(words >> name)) continue;
    const std::string wanted =
        fmt::format("{}: expected a line such as \"a slots=4\", got \"{}\"", file.string(), line);
    check(words >> slots && slots.starts_with("slots=") && !(words >> more), kWhere, "{}", wanted);
    hosts.push_back({name, parse_slots(wanted, slots.substr(6))});
  }
  check_distinct(file.string(), hosts);
  return hosts;
}

std::vector<std::string> mpirun_words(int ranks, const std::vector<HostSlots>& hosts) {
  std::vector<std::string> words = {"mpirun", "-np", std::to_string(ranks)};
  const auto set = [&](const std::string& name, const std::string& value) {  // unless the user did
    if (std::getenv(("OMPI_MCA_" + name).c_str()) == nullptr)
      words.insert(words.end(), {"--mca", name, value});
  };
  if (hosts.empty()) {
    if (static_cast<unsigned>(ranks) > std::thread::hardware_concurrency()) {
      set("rmaps_base_oversubscribe", "1");
      set("mpi_yield_when_idle", "1");  // a rank that waits leaves its core to the others
      set("hwloc_base_binding_policy", "none");
    }
    return words;
  }
  std::string list;
  for (const HostSlots& host : hosts)
    list += fmt::format("{}{}:{}", list.empty() ? "" : ",", host.name, host.ranks);
  words.insert(words.end(), {"--host", list, "--wdir", std::filesystem::current_path().string()});
  // Or mpirun would wait for ever for a host whose network is gone: after 10 s of silence it asks three
  // times.
  set("oob_tcp_keepalive_time", "10");
  set("oob_tcp_keepalive_intvl", "3");
  set("oob_tcp_keepalive_probes", "3");
  for (const std::string& name : variables_of_libraries()) words.insert(words.end(), {"-x", name});
  return words;
}

std::string read_death(const std::string& line) {
  static const std::regex kDeath(
      "noticed that process rank ([0-9]+) with PID [0-9]+ on node (\\S+) exited on (signal [0-9]+( "
      "\\(.*\\))?)");
  std::smatch found;
  if (!std::regex_search(line, found, kDeath)) return {};
  return fmt::format("rank {} on host {} was killed by {}", found.str(1), found.str(2), found.str(3));
}

bool is_worth_restarting(const Attempt& a, bool stepped_before) {
  if (a.asked || a.code == kExitDone || a.code == kExitUsage || a.code == kExitStopped ||
      a.code == kExitDiverged)
    return false;
  return a.stepped || a.killed || a.code == kExitLost || stepped_before;
}

namespace {

/// Of a line such as "step  120/1000  loss ..", or with no other number.
std::int64_t step_of(const std::string& line) {
  std::int64_t step = 0;
  const std::size_t begin = std::min(line.find_first_not_of(' ', 4), line.size());
  std::from_chars(line.data() + begin, line.data() + line.size(), step);
  return step;
}

/// "exit code 137 after 41.7 s, as rank 2 on host a was killed by signal 9 (Killed) after step 120", whose
/// line was the last: with log.every there may be later ones.
std::string describe(const Attempt& a) {
  const std::string text = fmt::format("{} after {:.1f} s", a.ending, a.seconds);
  if (a.death.empty()) return text;
  return fmt::format(
      "{}, as {} {}", text, a.death,
      a.last_step > 0 ? fmt::format("after step {}", a.last_step) : "before the first step's line");
}

Attempt attempt(const std::vector<std::string>& words) {
  Attempt a;
  const auto start = std::chrono::steady_clock::now();
  const ShownResult result = run_shown(words, [&](const std::string& line, bool is_error) {
    if (line.starts_with("step ")) a.stepped = true, a.last_step = std::max(a.last_step, step_of(line));
    if (!is_error) return true;
    if (line.find("exited on signal") != std::string::npos) {
      a.killed = true;
      if (a.death.empty()) a.death = read_death(line);
    }
    a.errors += line + "\n";
    if (a.errors.size() > 1 << 16) a.errors.erase(0, 1 << 15);
    return line.find(kNoPort) == std::string::npos;  // after which Open MPI's ranks wait for ever
  });
  a.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  a.code = result.code, a.ending = result.ending, a.asked = result.asked;
  return a;
}

void say(const std::string& text) {
  std::fflush(stdout);
  fmt::print(stderr, "launch: {}\n", text);
}

}  // namespace

int run_with_restarts(const std::vector<std::string>& first, const std::vector<std::string>& again,
                      std::int64_t max_restarts) {
  bool stepped = false;
  for (std::int64_t restarts = 0, idle = 0;; ++restarts) {
    const Attempt a = attempt(restarts == 0 ? first : again);
    const bool has_failed = !a.asked && a.code != kExitDone && a.code != kExitStopped;
    bool is_explained =
        a.errors.find("\ntransmamba: ") != std::string::npos || a.errors.starts_with("transmamba: ");
    if (has_failed && !is_explained)
      if (const std::string why = explain_mpirun(a.errors); !why.empty()) say(why), is_explained = true;
    if (!is_worth_restarting(a, stepped)) {
      if (has_failed && max_restarts > 0)
        say(fmt::format("not restarted: {} {}", a.ending,
                        a.code == kExitDiverged
                            ? "says too many bad steps in a row, which a restart does not mend"
                            : "before the first step, which would come again"));
      return a.code;
    }
    stepped |= a.stepped;
    const std::string what = describe(a);
    if (restarts == max_restarts) {
      if (max_restarts > 0)
        say(fmt::format("{}, and train.max_restarts = {}: the end", what, max_restarts));
      else if (!a.death.empty() && !is_explained)
        say(what);
      return a.code;
    }
    say(fmt::format("{}: restart {} of at most {}, from the newest checkpoint", what, restarts + 1,
                    max_restarts));
    // A host that is gone may come back: the longer it does not, the longer each wait, up to a minute.
    idle = a.stepped ? 0 : std::min<std::int64_t>(idle + 1, 6);
    if (idle > 0) std::this_thread::sleep_for(std::chrono::seconds(std::min(60, 1 << idle)));
  }
}

std::string explain_mpirun(const std::string& errors) {
  const auto has = [&](const char* part) { return errors.find(part) != std::string::npos; };
  const std::string node = after(errors, "Node: ");
  if (has("could not access\nor execute an executable"))
    return fmt::format(
        "host {} has no program {}: it has to be at that path on every host, as on a shared file system",
        node, after(errors, "Executable: "));
  if (has("change to the specified working directory"))
    return fmt::format(
        "host {} has no folder {}: start this in one that every host has, as on a shared file system", node,
        after(errors, "Working directory: "));
  if (has("Address already in use") || has("address already in use") || has(kNoPort)) {
    const std::string host = host_of_line(errors, kNoPort);
    return fmt::format(
        "{}a port that was asked for is taken: end what has it (`ss -ltnp` on that host shows it), or ask "
        "for "
        "another one, or none (OMPI_MCA_btl_tcp_port_min_v4, OMPI_MCA_oob_tcp_static_ipv4_ports)",
        host.empty() ? "" : fmt::format("host {}: ", host));
  }
  if (has("run as root") || has("running as root"))
    return "mpirun refuses to run as root: be another user, or set OMPI_ALLOW_RUN_AS_ROOT=1 and "
           "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1";
  if (has("not enough slots"))
    return "mpirun has fewer places (slots) than ranks: -n should be at most what the hosts offer";
  if (has("lost communication with a remote daemon")) {
    const std::string daemon = after(errors, "Remote daemon: ");
    return fmt::format("host {} is gone: it, its network or mpirun's daemon there failed",
                       daemon.substr(std::min(daemon.rfind(' '), daemon.size() - 1) + 1));
  }
  if (const std::size_t at = errors.find("ORTE was unable to reliably start"); at != std::string::npos) {
    std::istringstream before(errors.substr(0, at));  // what ssh says, which names the host
    std::string said;
    for (std::string line; std::getline(before, line);)
      if (line.find_first_not_of(" -") != std::string::npos) said = fmt::format(" ({})", line);
    return fmt::format(
        "a host could not be reached, or is gone{}: `ssh HOST mpirun --version` has to work from here, "
        "without a password, for each host, and to print the same",
        said);
  }
  return {};
}

}  // namespace transmamba
