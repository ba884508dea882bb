#include "launch/slurm.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <fstream>
#include <sstream>
#include <thread>

#include "kernels/check.h"
#include "launch/child_process.h"
#include "launch/host.h"

namespace transmamba {
namespace {

constexpr auto kWhere = "launch";
constexpr double kPatience = 60;  // seconds for SLURM's programs, which try again by themselves

bool has(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

int number(std::string_view text) {
  int value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

/// One line of SLURM's, without its program's name, for a message.
std::string last_line(const std::string& text) {
  std::istringstream in(text);
  std::string last;
  for (std::string line; std::getline(in, line);)
    if (!line.empty()) last = line;
  return last.empty() ? "it says nothing" : last;
}

Captured slurm(const std::vector<std::string>& words) {
  check(!find_program(words[0]).empty(), kWhere,
        "there is no {} on {}: start this on a host of a SLURM cluster, or use --local or --hosts", words[0],
        host_name());
  return capture(words, kPatience);
}

[[noreturn]] void fail_with(const std::string& program, const Captured& ran) {
  const std::string why = explain_slurm(ran.err);
  fail(kWhere, "{} on {}: {}: {}", program, host_name(), ran.ending,
       why.empty() ? last_line(ran.err) : fmt::format("{} ({})", why, last_line(ran.err)));
}

}  // namespace

std::string fill_in(const std::string& text, const SlurmJob& job) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  const auto find = [&](const std::string& start) {
    return std::find_if(lines.begin(), lines.end(),
                        [&](const auto& line) { return line.starts_with(start); });
  };
  for (const auto& [name, value] : job.options) {
    const std::string option = "#SBATCH --" + name,
                      whole = value.empty() ? option : fmt::format("{}={}", option, value);
    const auto last = std::find_if(lines.rbegin(), lines.rend(),
                                   [](const auto& line) { return line.starts_with("#SBATCH "); });
    check(last != lines.rend(), kWhere, "the template has no line that starts with #SBATCH");
    auto line = find(fmt::format("{}=", option));
    if (line == lines.end()) line = lines.insert(last.base(), "");
    *line = whole;
  }
  for (const auto& [name, value] :
       {std::pair<std::string, std::string>{"run", fmt::format("({})", shell_words(job.run))},
        {"mpi", job.mpi},
        {"max_restarts", std::to_string(job.max_restarts)}}) {
    const auto line = find(fmt::format("{}=", name));
    check(line != lines.end(), kWhere, "the template has no line that starts with {}=", name);
    *line = fmt::format("{}={}", name, value);
  }
  std::string script;
  for (const std::string& line : lines) script += line + "\n";
  return script;
}

std::string choose_pmi(const std::string& offered, const std::string& ours) {
  const auto offers = [&](const std::string& type) {  // a word of its own, as versions are called pmix_v4
    std::istringstream in(offered);
    for (std::string word; in >> word;)
      if (word == type || word == fmt::format("{},", type)) return true;
    return false;
  };
  const bool known = !ours.empty();
  // Open MPI from 5 on speaks PMIx and nothing else; before, what it has of a framework called pmix says it.
  const bool pmix =
      !known || !has(ours, "mca:pmix:") || has(ours, "mca:pmix:ext") || has(ours, "mca:pmix:pmix");
  const bool pmi2 = !known || has(ours, "mca:pmix:s2:");
  if (pmix && offers("pmix")) return "pmix";
  if (pmi2 && offers("pmi2")) return "pmi2";
  std::string list = offered;
  std::replace_if(
      list.begin(), list.end(), [](unsigned char c) { return c < ' '; }, ' ');
  fail(
      kWhere,
      "ranks that srun starts could not find each other: expected pmix{} among what `srun --mpi=list` has on "
      "{}, got \"{}\"; {} would do, and so would mpirun in a job (--mpi NAME chooses one all the same)",
      pmi2 ? " or pmi2" : "", host_name(), list,
      pmi2 ? "SLURM's plugin of either"
           : "SLURM's plugin for PMIx, or an Open MPI built --with-pmi, for pmi2,");
}

std::string choose_pmi_here() {
  const Captured list = slurm({"srun", "--mpi=list"});
  if (!list.ok) fail_with("srun --mpi=list", list);
  std::string ours;
  if (!find_program("ompi_info").empty()) ours = capture({"ompi_info", "--parsable"}, kPatience).out;
  return choose_pmi(list.out + list.err, ours);
}

std::string submit(const std::filesystem::path& script) {
  const Captured ran = slurm({"sbatch", "--parsable", script.string()});
  if (!ran.ok) fail_with("sbatch", ran);
  return ran.out.substr(0, ran.out.find_first_of(";\n"));  // of several clusters: "17;cluster"
}

bool JobState::is_over() const {
  constexpr std::array kOver = {"COMPLETED", "FAILED",    "CANCELLED",     "TIMEOUT", "NODE_FAIL",
                                "PREEMPTED", "BOOT_FAIL", "OUT_OF_MEMORY", "DEADLINE"};
  return std::find(kOver.begin(), kOver.end(), state) != kOver.end();
}

JobState parse_job_state(const std::string& text) {
  const auto value = [&](const std::string& key) {
    const std::size_t at = fmt::format(" {}", text).find(fmt::format(" {}=", key));
    if (at == std::string::npos) return std::string();
    const std::size_t begin = at + key.size() + 1;
    return text.substr(begin, text.find_first_of(" \n", begin) - begin);
  };
  const std::string code = value("ExitCode");
  const int signal = number(code.substr(std::min(code.find(':'), code.size() - 1) + 1));
  return {value("JobState"), value("Reason"), value("StdOut"), signal > 0 ? 128 + signal : number(code),
          number(value("Restarts"))};
}

namespace {

/// What a log got since the last time.
class Tail {
 public:
  void show(const std::filesystem::path& log) {
    std::ifstream in(log, std::ios::binary);
    if (!in.seekg(shown_)) return;
    std::array<char, 1 << 16> bytes{};
    while (in.read(bytes.data(), bytes.size()), in.gcount() > 0) {
      std::fwrite(bytes.data(), 1, static_cast<std::size_t>(in.gcount()), stdout);
      shown_ += in.gcount();
    }
    std::fflush(stdout);
  }

 private:
  std::streamoff shown_ = 0;
};

}  // namespace

int follow(const std::string& job) {
  Tail tail;
  std::string said;
  for (JobState known;;) {
    const Captured ran = slurm({"scontrol", "--oneliner", "show", "job", job});
    if (ran.ok) {
      known = parse_job_state(ran.out);
      std::string say = known.state;
      if (known.state == "PENDING" && known.restarts > 0) say += fmt::format(", restart {}", known.restarts);
      if (known.state == "PENDING" && known.reason != "None") say += fmt::format(" ({})", known.reason);
      tail.show(known.log);
      if (say != said) fmt::print("launch: job {}: {}\n", job, said = say);
      std::fflush(stdout);
      if (known.is_over()) return known.state == "COMPLETED" ? 0 : std::max(known.exit_code, 1);
    } else if (has(ran.err, "Invalid job id")) {
      tail.show(known.log);
      fail(kWhere, "SLURM has forgotten job {}; its log is {}", job, known.log);
    } else if (said != ran.err) {  // its controller is away, say: it may come back
      fmt::print(stderr, "warning: {}; asking again\n", last_line(said = ran.err));
    }
    for (int i = 0; i < 4; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(500));
      if (!known.log.empty()) tail.show(known.log);
    }
  }
}

std::string explain_slurm(const std::string& errors) {
  if (has(errors, "unge")) return "munge, by which SLURM knows its users, does not answer here: start munged";
  if (has(errors, "fetch config") || has(errors, "cannot stat file") || has(errors, "configuration source"))
    return "SLURM's configuration was not found: is this host one of a cluster? SLURM_CONF names another "
           "file";
  if (has(errors, "contact slurm controller") || has(errors, "Connection refused"))
    return "slurmctld does not answer: is it up, and does SLURM_CONF name the right cluster?";
  return {};
}

}  // namespace transmamba
