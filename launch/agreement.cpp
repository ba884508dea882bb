#include "launch/agreement.h"

#include <fstream>
#include <iterator>
#include <sstream>

#include "parallel/comm/agree.h"

namespace transmamba {
namespace {

std::string text_of(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

void check_same_configuration(Communicator& world, const Config& config) {
  const std::string mine = config.to_ini(), machine = text_of(config.parallel.machine);
  const std::vector<std::string> all = gather_text(world, "configuration", mine);
  for (std::size_t rank = 1; rank < all.size(); ++rank) {
    std::istringstream first(all[0]), other(all[rank]);
    std::string section, ours, theirs;
    while (std::getline(first, ours)) {
      if (!std::getline(other, theirs)) theirs = "nothing";
      if (ours.starts_with('[')) section = ours;
      check(ours == theirs, "config", "ranks 0 and {} have different configurations: {} \"{}\" and \"{}\"",
            rank, section, ours, theirs);
    }
  }
  const std::vector<std::string> machines = gather_text(world, "machine file", machine);
  for (std::size_t rank = 1; rank < machines.size(); ++rank)
    check(machines[rank] == machines[0], "config",
          "parallel.machine = {}: ranks 0 and {} read different files of that name, and would balance "
          "differently",
          config.parallel.machine.string(), rank);
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
    check(all[rank] == all[0], "data", "data.path = {}: ranks 0 and {} see different files: {}; and {}",
          training.path().string(), rank, all[0], all[rank]);
}

}  // namespace transmamba
