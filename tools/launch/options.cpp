#include "tools/launch/options.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <set>

#include "parallel/degrees.h"

namespace transmamba {

const char* const kLaunchUsage =
    "usage: transmamba launch CONFIG --local [-n RANKS]               by mpirun, on this host\n"
    "       transmamba launch CONFIG --hosts a:4,b:4                  by mpirun, on these (or --hostfile "
    "FILE)\n"
    "       transmamba launch CONFIG --nodes N --ranks-per-node R     a job of SLURM, on CPUs\n"
    "       transmamba launch CONFIG --nodes N --gpus-per-node G      the same on GPUs, a rank each\n"
    "       .. [--dry-run] [--section.key value ...]\n\n"
    "Starts `transmamba train CONFIG --section.key value ..` on all ranks. It goes on from the newest "
    "checkpoint,\n"
    "where there is one (checkpoint.resume = auto), and after a crash is started again, up to\n"
    "--train.max_restarts times.\n\n"
    "  -n RANKS            how many; without, what parallel.tp x cp x pp x dp ask for\n"
    "  --hosts LIST        names and numbers of ranks; ssh has to reach them without a password\n"
    "  --hostfile FILE     the same, as mpirun reads it: a line \"a slots=4\" each\n"
    "  --time TIME         of the job: 1-12:00:00, say. Two minutes before its end ranks save, and the job "
    "goes back\n"
    "                      to the queue\n"
    "  --partition NAME, --account NAME\n"
    "  --cpus-per-rank C   cores of a rank (train.threads, or else what the template says)\n"
    "  --sbatch OPTION     a further option of sbatch, as often as you like: --sbatch --constraint=h200\n"
    "  --mpi TYPE          of `srun --mpi=`; without, pmix or pmi2, what both srun and MPI have\n"
    "  --template FILE     instead of launch/slurm/cpu.sbatch or launch/slurm/gpu.sbatch\n"
    "  --dry-run           show what would run\n";

namespace {

constexpr auto kWhere = "launch";

int parse_count(const std::string& name, const std::string& text) {
  int count = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, count);
  check(error == std::errc() && stop == end && count >= 1 && count <= 1 << 20, kWhere,
        "{}: expected an integer of at least 1, got \"{}\"", name, text);
  return count;
}

std::pair<std::string, std::string> parse_sbatch(const std::string& text) {
  const std::size_t equals = std::min(text.find('='), text.size());
  check(text.starts_with("--") && equals > 2 && text.find_first_of(" \n") == std::string::npos, kWhere,
        "--sbatch: expected an option such as --constraint=h200, got \"{}\"", text);
  return {text.substr(2, equals - 2), equals < text.size() ? text.substr(equals + 1) : ""};
}

void check_together(LaunchOptions& o, const std::set<std::string>& seen) {
  const auto has = [&](const char* name) { return seen.count(name) > 0; };
  const int ways = has("--local") + has("--hosts") + has("--hostfile") + has("--nodes");
  check(ways == 1, kWhere, "expected one of --local, --hosts LIST, --hostfile FILE and --nodes N, got {}",
        ways == 0 ? "none" : "several");
  o.slurm = has("--nodes");
  for (const char* name : {"--ranks-per-node", "--gpus-per-node", "--cpus-per-rank", "--time", "--partition",
                           "--account", "--sbatch", "--mpi", "--template"})
    check(o.slurm || !has(name), kWhere, "{} is for jobs of SLURM (--nodes N)", name);
  check(!o.slurm || !has("-n"), kWhere, "-n is for --local; jobs of SLURM take --nodes and --ranks-per-node");
  check(!o.slurm || has("--ranks-per-node") != has("--gpus-per-node"), kWhere,
        "--nodes: expected either --ranks-per-node R or --gpus-per-node G, a rank each");
  int slots = 0;
  for (const HostSlots& host : o.hosts) slots += host.ranks;
  check(o.hosts.empty() || o.ranks <= slots, kWhere, "-n {}: the hosts have places for {} ranks", o.ranks,
        slots);
  if (o.slurm)
    o.ranks_per_node = std::max(o.ranks_per_node, o.gpus_per_node), o.ranks = o.nodes * o.ranks_per_node;
  else if (o.ranks == 0)
    o.ranks = slots;
}

}  // namespace

LaunchOptions parse_launch_options(const std::vector<std::string>& words) {
  LaunchOptions o;
  o.config = std::filesystem::absolute(words.at(0));
  std::set<std::string> seen;
  using Take = std::function<void(const std::string&)>;
  const auto count = [](const std::string& name, int& to) -> std::pair<const std::string, Take> {
    return {name, [name, &to](const std::string& v) { to = parse_count(name, v); }};
  };
  const auto sbatch = [&](const std::string& name) -> std::pair<const std::string, Take> {
    return {name, [name, &o](const std::string& v) { o.sbatch.push_back(parse_sbatch(name + "=" + v)); }};
  };
  const std::map<std::string, Take> with_value{
      count("-n", o.ranks),
      count("--nodes", o.nodes),
      count("--ranks-per-node", o.ranks_per_node),
      count("--gpus-per-node", o.gpus_per_node),
      count("--cpus-per-rank", o.cpus_per_rank),
      sbatch("--time"),
      sbatch("--partition"),
      sbatch("--account"),
      {"--sbatch", [&](const std::string& v) { o.sbatch.push_back(parse_sbatch(v)); }},
      {"--mpi", [&](const std::string& v) { o.mpi = v; }},
      {"--template", [&](const std::string& v) { o.script = v; }},
      {"--hosts", [&](const std::string& v) { o.hosts = parse_hosts(v); }},
      {"--hostfile", [&](const std::string& v) { o.hosts = read_hostfile(v); }}};
  for (std::size_t i = 1; i < words.size(); ++i) {
    const std::string name = words[i].substr(0, words[i].find('='));
    if (name == "--local" || name == "--dry-run") {
      check(name == words[i], kWhere, "{}: expected no value, got \"{}\"", name, words[i]);
      if (name == "--dry-run") o.dry_run = true;
      seen.insert(name);
    } else if (const auto option = with_value.find(name); option != with_value.end()) {
      const bool beside = name.size() < words[i].size();
      check(beside || (i + 1 < words.size() && (name == "--sbatch" || !words[i + 1].starts_with("--"))),
            kWhere, "{} needs a value", name);
      check(seen.insert(name).second || name == "--sbatch", kWhere, "{} is given twice", name);
      option->second(beside ? words[i].substr(name.size() + 1) : words[++i]);
    } else {
      check(!name.starts_with("--") || name.find('.') != std::string::npos || name == "--profile", kWhere,
            "unknown option {}: `transmamba launch --help` lists them", name);
      o.overrides.push_back(words[i]);
    }
  }
  check_together(o, seen);
  return o;
}

namespace {

bool has_checkpoints(const std::filesystem::path& folder) {
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator(folder, none))
    if (entry.path().filename().string().starts_with("step_")) return true;
  return false;
}

/// The overrides without checkpoint.resume, which stands once on a command line.
std::vector<std::string> without_resume(const std::vector<std::string>& words) {
  std::vector<std::string> rest;
  for (std::size_t i = 0; i < words.size(); ++i)
    if (words[i] == "--checkpoint.resume")
      ++i;
    else if (!words[i].starts_with("--checkpoint.resume="))
      rest.push_back(words[i]);
  return rest;
}

int ranks_asked_for(const ParallelConfig& p) {
  return static_cast<int>(p.tp * p.cp * p.pp * std::max<std::int64_t>(p.dp, 1));
}

}  // namespace

LaunchPlan plan_launch(const LaunchOptions& o, const std::filesystem::path& program) {
  std::vector<std::string> words = o.overrides;
  for (std::string& word : words)  // as `train` has it
    if (word == "--profile" || word.starts_with("--profile=")) word.insert(2, "log.");
  LaunchPlan plan;
  plan.config = parse_config(o.config, words);
  const Config& c = plan.config;
  c.validate_training();
  plan.ranks = o.ranks > 0 ? o.ranks : ranks_asked_for(c.parallel);
  resolve_parallel(c, plan.ranks);
  const bool on_gpus = c.train.device == "cuda";
  if (o.slurm) {
    check(on_gpus == (o.gpus_per_node > 0), kWhere, "train.device = {}: expected {}", c.train.device,
          on_gpus ? "--gpus-per-node G, a rank each" : "--ranks-per-node R; or --train.device cuda for GPUs");
    check(!c.checkpoint.path.empty(), kWhere,
          "checkpoint.path: expected a folder that all nodes see, got nothing: a job that goes back to the "
          "queue "
          "goes on from there, and its log is there");
  }
  check(c.train.max_restarts == 0 || !c.checkpoint.path.empty(), kWhere,
        "train.max_restarts = {}: expected checkpoint.path, or every restart would begin anew",
        c.train.max_restarts);

  const std::vector<std::string> rest = without_resume(words);
  const bool asks = rest.size() < words.size() || c.checkpoint.resume != "none";
  const std::string resume = asks ? c.checkpoint.resume : "auto";
  if (resume != "auto" && (o.slurm || c.train.max_restarts > 0)) {
    // Later starts say auto, and must not find what another run left.
    check(!o.slurm, kWhere,
          "checkpoint.resume = {}: expected auto, as a job of SLURM is started again with the same words",
          resume);
    check(
        !has_checkpoints(c.checkpoint.path), kWhere,
        "checkpoint.resume = {}, but {} has checkpoints, from which a restart would go on: expected auto, or "
        "another checkpoint.path",
        resume, c.checkpoint.path.string());
  }
  const auto command = [&](const std::string& from) {
    std::vector<std::string> all = {program.string(), "train", o.config.string()};
    all.insert(all.end(), rest.begin(), rest.end());
    if (!c.checkpoint.path.empty()) all.insert(all.end(), {"--checkpoint.resume", from});
    return all;
  };
  plan.first = command(resume), plan.again = command("auto");
  return plan;
}

std::string job_script(const LaunchOptions& o, const LaunchPlan& plan, const std::string& mpi) {
  std::string text = o.gpus_per_node > 0 ? kSlurmGpuTemplate : kSlurmCpuTemplate;
  if (!o.script.empty()) {
    std::ifstream in(o.script, std::ios::binary);
    check(in.is_open(), kWhere, "--template: cannot read {}", o.script.string());
    text = {std::istreambuf_iterator<char>(in), {}};
  }
  const std::filesystem::path folder = std::filesystem::absolute(plan.config.checkpoint.path);
  SlurmJob job{{{"job-name", o.config.stem().string()},
                {"nodes", std::to_string(o.nodes)},
                {"ntasks-per-node", std::to_string(o.ranks_per_node)}},
               plan.again,
               mpi,
               plan.config.train.max_restarts};
  const auto add = [&](const std::string& name, const std::string& value) {
    job.options.emplace_back(name, value);
  };
  if (o.gpus_per_node > 0) add("gpus-per-node", std::to_string(o.gpus_per_node));
  const std::int64_t cores = o.cpus_per_rank > 0 ? o.cpus_per_rank : plan.config.train.threads;
  if (cores > 0) add("cpus-per-task", std::to_string(cores));
  add("output", (folder / "slurm-%j.log").string());
  add("chdir", std::filesystem::current_path().string());
  for (const auto& [name, value] : o.sbatch) add(name, value);
  return fill_in(text, job);
}

}  // namespace transmamba
