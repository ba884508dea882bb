#include "launch/agreement.h"

#include <chrono>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>

#include "launch/host.h"
#include "parallel/comm/agree.h"

namespace transmamba {
namespace {

std::string text_of(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// Ranks 0 and another, with their hosts where these are two. A collective call, and only made where all know
/// that it is wanted.
std::string both(Communicator& world, std::size_t rank) {
  const std::vector<std::string> hosts = gather_text(world, "hosts", host_name());
  if (hosts[0] == hosts[rank]) return fmt::format("ranks 0 and {}", rank);
  return fmt::format("ranks 0 on {} and {} on {}", hosts[0], rank, hosts[rank]);
}

/// FNV-1a over the file's 64-bit words: this compares builds, and nobody forges them.
std::string digest_of(const std::filesystem::path& file) {
  const std::string bytes = text_of(file);
  std::uint64_t hash = 14695981039346656037U;
  for (std::size_t i = 0; i < bytes.size(); i += sizeof(std::uint64_t)) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data() + i, std::min(sizeof word, bytes.size() - i));
    hash = (hash ^ word) * 1099511628211U;
  }
  return fmt::format("{:016x} {}", hash, bytes.size());
}

}  // namespace

HostFacts host_facts() { return {host_name(), digest_of("/proc/self/exe")}; }

double wall_clock() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::vector<std::string> check_same_program(Communicator& world, const HostFacts& mine,
                                            const std::function<double()>& now) {
  constexpr double kApart = 5;  // seconds: far more than ranks need to leave a barrier
  const std::vector<std::string> programs = gather_text(world, "programs", mine.program);
  const std::vector<std::string> hosts = gather_text(world, "hosts", mine.host);
  world.barrier("clocks");
  const std::vector<std::string> clocks = gather_text(world, "clocks", fmt::format("{:.3f}", now()));
  std::vector<std::string> warnings;
  std::set<std::string> named;
  for (std::size_t rank = 1; rank < hosts.size(); ++rank) {
    check(programs[rank] == programs[0], "program",
          "ranks 0 on {} and {} on {} run different builds of this program: copy one to all hosts, or start "
          "one that "
          "all see, and with the libraries of the same versions",
          hosts[0], rank, hosts[rank]);
    const double off = std::stod(clocks[rank]) - std::stod(clocks[0]);
    if (std::abs(off) > kApart && named.insert(hosts[rank]).second)
      warnings.push_back(
          fmt::format("the clock of host {} is {:.0f} s {} that of {}, so times of files and logs will "
                      "mislead: run an NTP client there",
                      hosts[rank], std::abs(off), off > 0 ? "ahead of" : "behind", hosts[0]));
  }
  return warnings;
}

void check_same_configuration(Communicator& world, const Config& config) {
  const std::string mine = config.to_ini(), machine = text_of(config.parallel.machine);
  const std::vector<std::string> all = gather_text(world, "configuration", mine);
  for (std::size_t rank = 1; rank < all.size(); ++rank) {
    std::istringstream first(all[0]), other(all[rank]);
    std::string section, ours, theirs;
    while (std::getline(first, ours)) {
      if (!std::getline(other, theirs)) theirs = "nothing";
      if (ours.starts_with('[')) section = ours;
      if (ours != theirs)
        fail("config", "{} have different configurations: {} \"{}\" and \"{}\"", both(world, rank), section,
             ours, theirs);
    }
  }
  const std::vector<std::string> machines = gather_text(world, "machine file", machine);
  for (std::size_t rank = 1; rank < machines.size(); ++rank)
    if (machines[rank] != machines[0])
      fail("config",
           "parallel.machine = {}: {} read different files of that name, and would balance differently",
           config.parallel.machine.string(), both(world, rank));
}

void check_same_data(Communicator& world, const TokenDataset& training, const TokenDataset* validation) {
  const auto describe = [](const TokenDataset& data) {
    return fmt::format("{} tokens of {} ids", data.size(), data.vocab_size());
  };
  std::string mine = describe(training);
  if (validation)
    mine += fmt::format(", for validation {} in {}", describe(*validation), validation->path().string());
  const std::vector<std::string> all = gather_text(world, "data", mine);
  for (std::size_t rank = 1; rank < all.size(); ++rank)
    if (all[rank] != all[0])
      fail("data", "data.path = {}: {} see different files: {}; and {}", training.path().string(),
           both(world, rank), all[0], all[rank]);
}

}  // namespace transmamba
