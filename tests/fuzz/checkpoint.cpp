// The folder of a checkpoint: the attributes of index.h5 and of two shards, index.cksum, and names of
// folders. Lines as in fuzz.h, each for the file named last by a line `index`, `shard0`, `shard1`; `cksum ..`
// instead of the right one, `folder NAME` beside it.
#include "parallel/checkpoint.h"

#include <algorithm>

#include "parallel/checkpoint_folder.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace transmamba;
  namespace fs = std::filesystem;
  const fs::path root = fuzz::folder() / "root", folder = root / "step_00000007";
  fs::remove_all(root);
  fs::create_directories(folder);
  std::vector<Hdf5File> files;
  for (const char* name : {"index.h5", "shard_00000.h5", "shard_00001.h5"})
    files.push_back(Hdf5File::create(folder / name));
  std::string sum;
  Hdf5File* file = &files[0];
  std::istringstream in(std::string(reinterpret_cast<const char*>(data), size));
  for (std::string line; std::getline(in, line);) {
    if (line == "index") {
      file = &files[0];
    } else if (line == "shard0") {
      file = &files[1];
    } else if (line == "shard1") {
      file = &files[2];
    } else if (line.starts_with("cksum ")) {
      sum = line.substr(6) + '\n';
    } else if (line.starts_with("folder ")) {
      std::string name = line.substr(7);
      std::erase_if(name, [](char c) { return c == '/' || c == '\0'; });
      std::error_code refused;
      fs::create_directory(root / name, refused);
    } else {
      fuzz::put(*file, line);
    }
  }
  for (Hdf5File& one : files) one.close();
  fuzz::write_file(folder / "index.cksum", sum.empty() ? cksum_line(folder / "index.h5") : sum);

  for (const fs::path& found : list_checkpoints(root))
    fuzz::allow_error([&] {
      for (const int ranks : {1, 3}) {
        const Checkpoint checkpoint(found, ranks - 1, ranks);
        fuzz::expect(checkpoint.state().step >= 0 && checkpoint.state().consumed_sequences >= 0);
        checkpoint.config().to_ini();
      }
    });
  return 0;
}
