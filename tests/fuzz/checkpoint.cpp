// The folder of a checkpoint: the attributes and tensors of index.h5 and of two shards, index.cksum, and
// names of folders. Lines as in fuzz.h, each for the file named last by a line `index`, `shard0`, `shard1`;
// `box NAME EXTENTS` is a dataset of that shape, `virtual NAME EXTENTS` and after each | a piece, `FILE
// DATASET OFFSETS EXTENTS`, one that shows others'; `cksum ..` instead of the right one, `folder NAME` beside
// it.
#include "parallel/checkpoint.h"

#include <algorithm>
#include <cstdlib>
#include <optional>

#include "parallel/checkpoint_folder.h"
#include "tests/fuzz/fuzz.h"

namespace transmamba {
namespace {

/// Extents and the like of a line: small, for what is tried is not our own writer.
std::vector<std::int64_t> small_numbers(std::istream& in) {
  std::vector<std::int64_t> values = fuzz::numbers<std::int64_t>(in);
  values.resize(std::min<std::size_t>(values.size(), 2 * Shape::kMaxDims));
  for (std::int64_t& value : values) value = std::abs(value % 9);
  return values;
}

void put_box(Hdf5File& file, std::istream& in) {
  static Allocator memory;
  std::string name;
  in >> name;
  Shape shape;
  for (const std::int64_t extent : small_numbers(in))
    if (shape.rank() < 4) shape.append(extent);
  const Tensor values(memory, shape, DType::f32);
  for (std::int64_t i = 0; i < values.numel(); ++i) values.ptr<float>()[i] = static_cast<float>(i);
  fuzz::allow_error([&] { file.write(name, values); });
}

void put_virtual(Hdf5File& file, std::istream& in) {
  std::string part, name;
  std::getline(in, part, '|');
  std::istringstream head(part);
  head >> name;
  const std::vector<std::int64_t> extents = small_numbers(head);
  std::vector<Hdf5Piece> pieces;
  while (std::getline(in, part, '|')) {
    std::istringstream words(part);
    Hdf5Piece& piece = pieces.emplace_back();
    words >> piece.source_file >> piece.source_dataset;
    const std::vector<std::int64_t> all = small_numbers(words);
    const auto middle = all.begin() + static_cast<std::ptrdiff_t>(all.size() / 2);
    piece.offset.assign(all.begin(), middle), piece.extent.assign(middle, all.end());
  }
  fuzz::allow_error([&] { file.write_virtual(name, extents, DType::f32, pieces); });
}

/// What a rank of two loads: half of a matrix, and a vector.
struct Rank {
  explicit Rank(int index) {
    store.add({{.name = "embedding.weight",
                .shard = {.global = {5, 4}, .dim = 0, .parts = 2, .index = index},
                .init = {},
                .weight_decay = true}});
    store.add({{.name = "norm.weight", .shard = {.global = {4}}, .init = {}}});
    store.allocate({{}, DType::f32, &memory});
    optimizer.emplace(OptimizerConfig{}, store, store.context());
  }
  Allocator memory;
  ParameterStore store;
  std::optional<Optimizer> optimizer;
};

}  // namespace
}  // namespace transmamba

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
    } else if (line.starts_with("box ") || line.starts_with("virtual ")) {
      std::istringstream words(line.substr(line.find(' ')));
      line[0] == 'b' ? put_box(*file, words) : put_virtual(*file, words);
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

  static Rank first(0), second(1);
  for (const fs::path& found : list_checkpoints(root))
    fuzz::allow_error([&] {
      for (const int ranks : {1, 3}) {
        const Checkpoint checkpoint(found, ranks - 1, ranks);
        fuzz::expect(checkpoint.state().step >= 0 && checkpoint.state().consumed_sequences >= 0);
        checkpoint.config().to_ini();
        for (Rank* rank : {&first, &second}) {
          fuzz::allow_error([&] { checkpoint.load_parameters(rank->store); });
          fuzz::allow_error([&] { checkpoint.load_optimizer(rank->store, *rank->optimizer); });
        }
      }
    });
  return 0;
}
