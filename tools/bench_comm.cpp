// transmamba bench comm: what each call between ranks takes, beside the library's own.
#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>

#include "core/metrics.h"
#include "launch/host.h"
#include "launch/measure.h"
#include "launch/session.h"
#include "parallel/comm/agree.h"
#include "parallel/degrees.h"
#include "parallel/mesh.h"
#include "tools/commands.h"

namespace transmamba {
namespace {

using Json = nlohmann::ordered_json;
constexpr auto kWhere = "bench comm";

constexpr auto kUsage =
    "usage: mpirun -np RANKS transmamba bench comm [--device cpu|cuda] [--dtype TYPE] [--min SIZE]\n"
    "                        [--max SIZE] [--factor N] [--seconds N] [--output FILE] [--json FILE]\n"
    "                        [--parallel.tp N ..]\n\n"
    "Times the calls between ranks at many sizes, on each axis of a mesh of more than one rank, beside the "
    "same\n"
    "calls of NCCL itself (on CPUs, of MPI). The result of each is first compared with what it has to be, "
    "exactly.\n"
    "A size is that of the whole buffer and bus bandwidth is what the busiest link carries, both as in "
    "nccl-tests\n"
    "(its doc/PERFORMANCE.md).\n\n"
    "  --device, --dtype  the same as --train.device and --train.dtype (cpu, float32)\n"
    "  --min SIZE         the smallest, in bytes or as 64K, 16M, 1G (default 64K)\n"
    "  --max SIZE         the largest (default 1G on a GPU and 16M on CPUs)\n"
    "  --factor N         from one size to the next (default 4)\n"
    "  --seconds N        how long to time each call, about (default 0.1)\n"
    "  --output FILE      the machine file for --parallel.machine: its links are set, or a new one is made\n"
    "  --json FILE        write the numbers, in seconds and bytes a second, here too\n"
    "  --parallel.tp N    and cp, dp, pp: the mesh, as in training (default: all ranks as one axis)\n";

struct Options {
  std::string output, json;
  std::int64_t min = 0, max = 0, factor = 4;  // 0: the default
  double seconds = 0.1;
  Config config;
};

template <class T>
T parse(const std::string& name, const std::string& word, T low, T high, const char* what) {
  T value{};
  const char* end = word.data() + word.size();
  const auto [stop, error] = std::from_chars(word.data(), end, value);
  check(error == std::errc() && stop == end && value >= low && value <= high, kWhere,
        "{}: expected {} from {} to {}, got \"{}\"", name, what, low, high, word);
  return value;
}

std::int64_t parse_size(const std::string& name, std::string word) {
  const std::string given = word;
  int shift = 0;
  for (const auto& [letter, bits] : {std::pair{'K', 10}, {'M', 20}, {'G', 30}})
    if (!word.empty() && word.back() == letter) shift = bits;
  if (shift > 0) word.pop_back();
  std::int64_t value = 0;
  const char* end = word.data() + word.size();
  const auto [stop, error] = std::from_chars(word.data(), end, value);
  check(error == std::errc() && stop == end && value > 0 && value <= std::int64_t{1} << (50 - shift), kWhere,
        "{}: expected bytes above 0, or as 64K, 16M or 1G, got \"{}\"", name, given);
  return value << shift;
}

Options parse(const std::vector<std::string>& arguments) {
  Options options;
  std::vector<std::string> overrides;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    const auto value = [&] {
      check(i + 1 < arguments.size(), kWhere, "{} needs a value", word);
      return arguments[++i];
    };
    if (word == "--min")
      options.min = parse_size("--min", value());
    else if (word == "--max")
      options.max = parse_size("--max", value());
    else if (word == "--factor")
      options.factor = parse<std::int64_t>("--factor", value(), 2, 1024, "an integer");
    else if (word == "--seconds")
      options.seconds = parse("--seconds", value(), 1e-6, 3600.0, "a number");
    else if (word == "--output")
      options.output = value();
    else if (word == "--json")
      options.json = value();
    else if (word == "--device" || word == "--dtype")
      overrides.insert(overrides.end(), {"--train." + word.substr(2), value()});
    else
      overrides.push_back(word);
  }
  options.config = parse_config("", overrides);
  return options;
}

struct Axis {
  std::string name;
  Communicator* group;
};

/// Those of the mesh that have more than one rank.
std::vector<Axis> axes_of(const Mesh& mesh, const ParallelConfig& p) {
  std::vector<Axis> axes = {{"tp", &mesh.tp()}, {"cp", &mesh.cp()}};
  if (p.dp > 1) axes.push_back({p.cp > 1 ? "data" : "dp", &mesh.data()});  // gradients go over cp x dp
  axes.push_back({"pp", &mesh.pp()});
  std::erase_if(axes, [](const Axis& axis) { return axis.group->size() == 1; });
  return axes;
}

/// MemAvailable of /proc/meminfo, bytes.
std::int64_t available_memory() {
  std::ifstream in("/proc/meminfo");
  std::string word;
  for (std::int64_t kib = 0; in >> word;)
    if (word == "MemAvailable:" && in >> kib) return kib * 1024;
  return std::numeric_limits<std::int64_t>::max();
}

/// All sizes of the sweep. Throws Error where one cannot be shared out, or where there is too little memory.
std::vector<std::int64_t> sizes_of(const Options& options, const Session& session, const Process& process,
                                   const std::vector<Axis>& axes) {
  const std::int64_t element = size_of(session.context().dtype);
  std::int64_t grain = element;  // every group gets equal parts
  for (const Axis& axis : axes) grain = std::lcm(grain, element * axis.group->size());
  std::int64_t size = options.min > 0 ? options.min : ((1 << 16) + grain - 1) / grain * grain;
  check(size % grain == 0, kWhere,
        "--min: expected a multiple of {} (elements of {} bytes in equal parts for the ranks of each axis), "
        "got {}",
        grain, element, size);
  const std::int64_t most = options.max > 0 ? options.max : session.gpu() ? 1 << 30 : 1 << 24;
  check(size <= most, kWhere, "--max: expected at least the {} bytes of the smallest size, got {}", size,
        most);
  std::vector<std::int64_t> sizes;
  for (; size <= most; size *= options.factor) sizes.push_back(size);
  // On a GPU two buffers, one an axis for copy engines to write to, and what NCCL has; over MPI copies of
  // messages on their way, and parts of sums.
  const bool on_gpu = session.gpu().has_value();
  const std::int64_t ranks = on_gpu ? 1 : process.local_size(),
                     buffers = !on_gpu ? 5 : 2 + options.config.parallel.copy_engines * std::ssize(axes);
  const std::int64_t free = on_gpu ? session.gpu()->free_bytes - (std::int64_t{2} << 30) : available_memory();
  check(
      sizes.back() <= free / (ranks * buffers), kWhere,
      "--max: {} x {} bytes are needed for the largest size on each of {} rank{}, but {} are free; expected "
      "at most {}",
      buffers, sizes.back(), ranks, ranks == 1 ? "" : "s of this host", format_bytes(free),
      std::max<std::int64_t>(free / (ranks * buffers), 0));
  return sizes;
}

/// A table row by row, and the same as JSON. Rank 0 speaks.
class Report {
 public:
  Report(bool speaks, const Session& session, int ranks)
      : speaks_(speaks), library_(session.gpu() ? "NCCL" : "MPI") {
    json_ = {{"device", session.gpu() ? session.gpu()->name : "CPU"},
             {"dtype", to_string(session.context().dtype)},
             {"library", library_},
             {"ranks", ranks},
             {"calls", Json::array()}};
    print(fmt::format("{:<6}{:>6}  {:<15}{:>12}{:>12}{:>10}{:>10}{:>12}{:>10}{:>8}\n", "axis", "ranks",
                      "call", "bytes", "us", "alg GB/s", "bus GB/s", library_ + " us", "bus GB/s", "%"));
  }
  void add(const std::string& axis, const CallTime& t) {
    std::string bare = fmt::format("{:>12}{:>10}{:>8}", "-", "-", "-");
    if (t.bare)
      bare = fmt::format("{:>12.2f}{:>10.3f}{:>8.1f}", 1e6 * *t.bare, 1e-9 * t.bare_bus_rate(),
                         100 * *t.bare / t.seconds);
    print(fmt::format("{:<6}{:>6}  {:<15}{:>12}{:>12.2f}{:>10.3f}{:>10.3f}{}\n", axis, t.ranks,
                      to_string(t.kind), t.bytes, 1e6 * t.seconds, 1e-9 * t.algorithm_rate(),
                      1e-9 * t.bus_rate(), bare));
    Json call = {{"axis", axis},
                 {"ranks", t.ranks},
                 {"call", to_string(t.kind)},
                 {"bytes", t.bytes},
                 {"seconds", t.seconds},
                 {"algorithm_bytes_per_second", t.algorithm_rate()},
                 {"bus_bytes_per_second", t.bus_rate()}};
    if (t.bare) {
      call["bare_seconds"] = *t.bare, call["bare_bus_bytes_per_second"] = t.bare_bus_rate();
      call["percent_of_bare"] = 100 * *t.bare / t.seconds;
    }
    json_["calls"].push_back(call);
  }
  void print(const std::string& text) const {
    if (speaks_) fmt::print("{}", text), std::fflush(stdout);
  }
  void write(const std::string& file) const {
    std::ofstream out(file);
    out << json_.dump(1) << '\n';
    check(static_cast<bool>(out.flush()), kWhere, "--json: cannot write {}", file);
  }

 private:
  bool speaks_;
  std::string library_;
  Json json_;
};

/// Every kind of call at every size, and at one size between two of them, to try what is made of the others.
Links sweep(const Options& options, const std::vector<std::int64_t>& sizes, const Axis& axis,
            const CallBench& bench, Report& report, std::vector<FitCheck>& checks) {
  std::vector<CallTime> times, tried;
  for (const Call::Kind kind : kMeasuredKinds) {
    for (const std::int64_t size : sizes) {
      bench.verify(kind, size);
      report.add(axis.name, times.emplace_back(bench.time(kind, size, options.seconds, true)));
    }
    if (sizes.size() < 2) continue;
    const double middle = std::sqrt(static_cast<double>(sizes[sizes.size() / 2]) *
                                    static_cast<double>(sizes[sizes.size() / 2 - 1]));
    const std::int64_t between = bench.fitting(static_cast<std::int64_t>(middle));
    tried.push_back(bench.time(kind, between, options.seconds, false));
  }
  std::vector<FitCheck> found;
  const Links links = fit_links(times, tried, found);
  for (FitCheck& check : found) {
    check.what = fmt::format("{}: {}", axis.name, check.what);
    checks.push_back(check);
  }
  return links;
}

/// What a line would be off by says why times themselves are kept.
std::string lines_of(const Axis& axis, const Links& links) {
  std::string text = fmt::format("{}: latency and bytes alone are off by at most", axis.name);
  for (const auto& [name, link] : {std::pair{"all_reduce", &links.all_reduce},
                                   {"all_gather", &links.all_gather},
                                   {"reduce_scatter", &links.reduce_scatter},
                                   {"exchange", &links.exchange},
                                   {"send", &links.send}})
    text += fmt::format("{} {:.0f} % ({})", text.back() == ')' ? "," : "", 100 * off_a_line(*link), name);
  return text + "; a machine file keeps each size\n";
}

/// The machine file that is there, or the one that will be: of built-in numbers.
Machine machine_before(const Options& options) {
  if (std::filesystem::exists(options.output)) return Machine::load(options.output);
  Machine machine = Machine::of({}, options.config.train.device);
  machine.name = host_name();
  return machine;
}

void save(const std::string& file, Machine machine, const std::optional<Links>& within,
          const std::optional<Links>& between, std::int64_t ranks_per_host) {
  if (within) machine.within_host = *within;
  if (between) machine.between_hosts = *between;
  // Without other hosts, there may be more ranks on this one than there were: then all are within it.
  machine.ranks_per_host = between ? ranks_per_host : std::max(machine.ranks_per_host, ranks_per_host);
  const auto name = [](const std::optional<Links>& links) {
    return links ? fmt::format("{} ranks", links->ranks) : "as before";
  };
  machine.measured_on = fmt::format("{}; links (bench comm) within a host: {}, between hosts: {}",
                                    machine.measured_on.substr(0, machine.measured_on.find("; links")),
                                    name(within), name(between));
  machine.save(file);
}

}  // namespace

int bench_comm(Process& process, const std::vector<std::string>& arguments) {
  if (!arguments.empty() && is_help(arguments[0])) return print_usage(process, kUsage, arguments);
  Options options = parse(arguments);
  ParallelConfig& degrees = options.config.parallel;
  check(
      process.size() > 1, kWhere,
      "ranks: expected at least 2, got 1; start it with mpirun -np N (or srun), with a GPU for each on GPUs");
  const bool is_one_axis = degrees.tp * degrees.cp * degrees.pp == 1 && degrees.dp == 0;
  check_mesh(degrees, process.size());
  degrees.dp = process.size() / (degrees.tp * degrees.cp * degrees.pp);
  Session session(options.config.train, process);
  const Context& context = session.context();
  const auto world = session.world(process, static_cast<double>(degrees.timeout));
  std::unique_ptr<Mesh> mesh;
  if (!is_one_axis) mesh = std::make_unique<Mesh>(*world, degrees);
  const std::vector<Axis> axes =
      is_one_axis ? std::vector<Axis>{{"world", world.get()}} : axes_of(*mesh, degrees);
  std::vector<std::int64_t> sizes;
  Machine machine;
  Tensor x, y;
  agree(*world, kWhere, [&] {
    if (world->rank() == 0 && !options.output.empty()) machine = machine_before(options);
    sizes = sizes_of(options, session, process, axes);
    x = context.empty({sizes.back() / size_of(context.dtype)}), y = context.empty(x.shape());
  });

  const bool speaks = world->rank() == 0;
  Report report(speaks, session, world->size());
  const std::vector<std::string> hosts = gather_text(*world, "host names", host_name());
  std::vector<FitCheck> checks;
  std::string lines;
  std::optional<Links> within, between;  // of the axis of the most ranks
  for (const Axis& axis : axes) {
    const Links links =
        sweep(options, sizes, axis, CallBench(context, *axis.group, *world, x, y, degrees.copy_engines),
              report, checks);
    lines += lines_of(axis, links);
    const std::vector<std::string> names = gather_text(*axis.group, "host names", host_name());
    const bool is_near = std::count(names.begin(), names.end(), names[0]) == axis.group->size();
    std::optional<Links>& best = is_near ? within : between;
    if (!best || best->ranks < links.ranks) best = links;
  }
  agree(*world, kWhere, [&] {
    if (!speaks) return;
    if (!options.json.empty()) report.write(options.json);
    if (!options.output.empty())
      save(options.output, machine, within, between, std::count(hosts.begin(), hosts.end(), hosts[0]));
  });
  report.print(fmt::format("\n{}\n{}", format_checks(checks), lines));
  if (!options.output.empty())
    report.print(fmt::format("written to {0}; use it with --parallel.machine {0}\n", options.output));
  return 0;
}

}  // namespace transmamba
