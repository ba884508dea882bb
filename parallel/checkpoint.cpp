#include "parallel/checkpoint.h"

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <system_error>

#include "core/config_keys.h"
#include "core/durable_rename.h"
#include "parallel/checkpoint_shards.h"
#include "parallel/comm/agree.h"

namespace transmamba {
namespace {

namespace fs = std::filesystem;
constexpr std::string_view kWhere = "checkpoint";
constexpr std::int64_t kFormatVersion = 1;
constexpr std::string_view kPartial = ".partial", kOld = ".old";
constexpr std::string_view kStep = "step_";

void write_index(const fs::path& path, const TrainState& state, const Config& config,
                 const TokenizerSource& tokenizer, DType dtype, const std::vector<std::string>& shards) {
  Hdf5File file = Hdf5File::create(path);
  write_tensors(file, dtype, shards);
  file.set_attribute("format_version", kFormatVersion);
  file.set_attribute("step", state.step);
  file.set_attribute("consumed_sequences", state.consumed_sequences);
  file.set_attribute("seed", config.train.seed);
  file.set_attribute("rng", std::string("philox4x32-10, keyed by seed; counters: step, consumed_sequences"));
  file.set_attribute("config", config.to_ini());
  file.set_attribute("tokenizer", tokenizer.name);
  if (!tokenizer.model.empty())
    file.write("tokenizer_model", std::vector<std::uint8_t>(tokenizer.model.begin(), tokenizer.model.end()));
  file.set_attribute("shards", static_cast<std::int64_t>(shards.size()));
  file.close();
}

/// The line that POSIX `cksum index.h5` prints: CRC-32 of the bytes and then of their number, and the number.
std::string cksum_line(const fs::path& index) {
  std::ifstream in(index, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(in), {}};
  std::uint32_t crc = 0;
  const auto add = [&](unsigned char byte) {
    crc ^= static_cast<std::uint32_t>(byte) << 24;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 31 ? crc << 1 ^ 0x04C11DB7U : crc << 1;
  };
  for (const char byte : bytes) add(static_cast<unsigned char>(byte));
  for (std::size_t n = bytes.size(); n > 0; n >>= 8) add(static_cast<unsigned char>(n & 0xFF));
  return fmt::format("{} {} {}\n", ~crc, bytes.size(), index.filename().string());
}

void write_cksum(const fs::path& folder) {
  const fs::path path = folder / "index.cksum";
  std::ofstream out(path, std::ios::binary);
  out << cksum_line(folder / "index.h5");
  out.close();
  check(!out.fail(), kWhere, "{}: cannot be written", path.string());
  sync_to_disk(path);
}

/// The HDF5 library may crash on a damaged list of virtual sources, the one thing in its files without a
/// checksum that counts. So the index is only opened when all of it is as it was written.
Hdf5File open_index(const fs::path& folder) {
  const fs::path path = folder / "index.h5";
  std::ifstream cksum(folder / "index.cksum", std::ios::binary);
  const std::string expected{std::istreambuf_iterator<char>(cksum), {}};
  char signature[8] = {};
  std::ifstream(path, std::ios::binary).read(signature, sizeof signature);
  const bool is_hdf5 = std::string_view(signature, sizeof signature) == "\x89HDF\r\n\x1a\n";
  if (const std::string got = is_hdf5 && cksum.is_open() ? cksum_line(path) : expected; got != expected)
    fail(kWhere, "{}: damaged: index.cksum has \"{}\", expected \"{}\" (checksum, bytes)", path.string(),
         expected.substr(0, expected.find('\n')), got.substr(0, got.size() - 1));
  return Hdf5File::open(path);
}

/// What is in a folder; nothing where it cannot be read.
std::vector<fs::path> entries_of(const fs::path& root) {
  std::vector<fs::path> entries;
  std::error_code error;
  for (fs::directory_iterator it(root, error); !error && it != fs::directory_iterator(); it.increment(error))
    entries.push_back(it->path());
  return entries;
}

/// The step of a checkpoint by its folder's name; -1 for other names.
std::int64_t step_of(const fs::path& folder) {
  const std::string name = folder.filename().string();
  if (!name.starts_with(kStep)) return -1;
  std::int64_t step = -1;
  const auto [stop, error] = std::from_chars(name.data() + kStep.size(), name.data() + name.size(), step);
  return error == std::errc() && stop == name.data() + name.size() ? step : -1;
}

fs::path with_suffix(const fs::path& folder, std::string_view suffix) {
  return folder.string() + std::string(suffix);
}

/// Gives `aside` the name `folder`. Where that is taken (the same step again) the two are swapped, so that at
/// no moment is there neither. File systems that cannot swap get two renames.
void put_in_place(const fs::path& aside, const fs::path& folder) {
  if (!fs::exists(fs::symlink_status(folder))) return durable_rename(aside, folder);
  if (::renameat2(AT_FDCWD, aside.c_str(), AT_FDCWD, folder.c_str(), RENAME_EXCHANGE) == 0) {
    sync_to_disk(folder.parent_path());
    return;  // what was there ends in .partial now
  }
  const fs::path replaced = with_suffix(folder, std::string(".replaced") + std::string(kPartial));
  fs::remove_all(replaced);
  fs::rename(folder, replaced);
  try {
    durable_rename(aside, folder);
  } catch (const Error&) {
    std::error_code ignored;
    fs::rename(replaced, folder, ignored);
    throw;
  }
}

/// Checkpoints of later steps become step_<step>.old, .old2, ..: none is overwritten.
void set_aside_later_ones(const fs::path& root, std::int64_t step) {
  for (const fs::path& folder : list_checkpoints(root, step)) {
    fs::path old = with_suffix(folder, kOld);
    for (int n = 2; fs::exists(fs::symlink_status(old)); ++n)
      old = with_suffix(folder, fmt::format("{}{}", kOld, n));
    fs::rename(folder, old);
  }
}

/// Best effort: a checkpoint that cannot be removed costs disk space, not the run.
void remove_old(const fs::path& root, std::int64_t keep) {
  std::error_code ignored;
  for (const fs::path& entry : entries_of(root))
    if (const std::string name = entry.filename().string();
        name.starts_with(kStep) && name.ends_with(kPartial))
      fs::remove_all(entry, ignored);
  if (keep <= 0) return;
  std::int64_t kept = 0;
  for (const fs::path& folder : list_checkpoints(root)) {  // the one just saved comes first
    if (++kept <= keep) continue;
    const fs::path doomed = with_suffix(folder, kPartial);  // never half a checkpoint under a good name
    fs::rename(folder, doomed, ignored);
    fs::remove_all(doomed, ignored);
  }
}

}  // namespace

void save_checkpoint(Communicator& world, const CheckpointConfig& where, const TrainState& state,
                     const Config& config, const TokenizerSource& tokenizer, const ParameterStore& store,
                     const Optimizer& optimizer) {
  const fs::path folder = where.path / fmt::format("{}{:08}", kStep, state.step);
  const fs::path aside = with_suffix(folder, kPartial);
  const bool first = world.rank() == 0;
  try {
    agree(world, "checkpoint: folder", [&] {
      if (!first) return;
      fs::create_directories(where.path);
      fs::remove_all(aside);
      fs::create_directory(aside);
    });
    agree(world, "checkpoint: shards", [&] {
      write_shard(aside, {world.rank(), world.size(), state.step}, store, optimizer);
      if (!first) sync_to_disk(aside);  // its own name in it, as each computer knows it
    });
    const auto shards =
        gather_text(world, "checkpoint: what is in the shards", describe_shard(store, optimizer));
    agree(world, "checkpoint: index", [&] {
      if (!first) return;
      write_index(aside / "index.h5", state, config, tokenizer, store.context().statistics(), shards);
      write_cksum(aside);
      sync_to_disk(aside);
      put_in_place(aside, folder);
      set_aside_later_ones(where.path, state.step);
    });
  } catch (const std::exception& error) {
    std::error_code ignored;
    if (first) fs::remove_all(aside, ignored);  // after agree() nobody writes there any more
    fail(kWhere, "step {} could not be saved; earlier checkpoints are untouched: {}", state.step,
         error.what());
  }
  if (first) remove_old(where.path, where.keep);
}

void prepare_checkpoints(Communicator& world, const CheckpointConfig& where) {
  agree(world, "checkpoint: trial", [&] {
    const fs::path trial = where.path / fmt::format("{}trial_{:05}{}", kStep, world.rank(), kPartial);
    std::error_code error;
    fs::create_directories(where.path, error);
    if (!error) fs::create_directory(trial, error);
    check(!error, kWhere, "checkpoint.path = {}: cannot be written to: {}", where.path.string(),
          error.message());
    fs::remove(trial, error);
  });
}

std::vector<fs::path> list_checkpoints(const fs::path& root, std::int64_t after) {
  std::vector<fs::path> folders;
  for (fs::path& entry : entries_of(root))
    if (const std::int64_t step = step_of(entry); step >= 0 && step > after)
      folders.push_back(std::move(entry));
  std::sort(folders.begin(), folders.end(),
            [](const fs::path& a, const fs::path& b) { return step_of(a) > step_of(b); });
  return folders;
}

Checkpoint::Checkpoint(const fs::path& folder, int rank, int ranks)
    : folder_(folder), index_([&] {
        std::error_code error;
        const fs::file_type type = fs::status(folder, error).type();
        check(type != fs::file_type::none, kWhere, "{}: {}", folder.string(), error.message());
        check(type == fs::file_type::directory, kWhere, "{}: expected a checkpoint folder, found {}",
              folder.string(), type == fs::file_type::not_found ? "nothing" : "a file");
        check(fs::exists(folder / "index.h5", error), kWhere,
              "{}: not a whole checkpoint: index.h5 is missing{}", folder.string(),
              list_checkpoints(folder).empty() ? "" : "; name one of the step_ folders in it");
        return open_index(folder);
      }()) {
  check(index_.has_attribute("format_version"), kWhere, "{}: index.h5 is not the index of a checkpoint",
        folder.string());
  const auto version = index_.attribute<std::int64_t>("format_version");
  check(version == kFormatVersion, kWhere, "{}: format version: expected {}, got {}", folder.string(),
        kFormatVersion, version);
  state_.step = index_.attribute<std::int64_t>("step");
  const int shards = static_cast<int>(index_.attribute<std::int64_t>("shards"));
  for (int shard = rank; shard < shards; shard += ranks) check_shard(folder, {shard, shards, state_.step});
  state_.consumed_sequences = index_.attribute<std::int64_t>("consumed_sequences");
  tokenizer_.name = index_.attribute<std::string>("tokenizer");
  if (index_.has("tokenizer_model")) {
    const auto bytes = index_.read_vector<std::uint8_t>("tokenizer_model");
    tokenizer_.model.assign(bytes.begin(), bytes.end());
  }
  config_ = parse_config_text(index_.attribute<std::string>("config"), (folder / "index.h5").string(), {});
}

void Checkpoint::read(const std::string& name, const ParameterStore& store, const Parameter& p,
                      const Shape& offset, const View& out) const {
  check(index_.has(name), kWhere, "{}: {} is missing", folder_.string(), name);
  Shape global;
  for (std::int64_t extent : index_.shape(name)) global.append(extent);
  check(global == p.shard.global, kWhere, "{}: {}: expected shape {}, found {}", folder_.string(), name,
        to_string(p.shard.global), to_string(global));
  Hdf5File::Extents start;
  for (int i = 0; i < offset.rank(); ++i) start.push_back(offset[i]);
  const Context& context = store.context();
  const bool in_place = context.stream.device == Device::cpu && out.dtype() == context.statistics();
  const Tensor host = in_place ? Tensor(out) : context.empty_host(out.shape(), context.statistics());
  index_.read(name, start, host);
  if (!in_place) from_host(context, host, out);
}

void Checkpoint::load_parameters(const ParameterStore& store) const {
  for (const Parameter& p : store.parameters())
    read(kCheckpointGroups[0] + p.name, store, p, p.shard.offset(), p.value);
}

void Checkpoint::load_optimizer(const ParameterStore& store, const Optimizer& optimizer) const {
  for (const OwnedRun& run : optimizer.owned()) {
    const Parameter& p = store.parameters()[run.parameter];
    const auto load = [&](const char* group, const View& flat) {
      for (const ShardBox& box : shard_boxes(p.shard, run.begin, run.end))
        read(group + p.name, store, p, box.offset, box_view(flat, box.local - run.begin, box.extent));
    };
    const std::array<View, 3> views = optimizer_views(optimizer, run);
    const bool has_master = views[0].dtype() != p.value.dtype();
    for (std::size_t i = has_master ? 0 : 1; i < views.size(); ++i) load(kCheckpointGroups[i], views[i]);
  }
}

std::vector<fs::path> list_checkpoints(Communicator& world, const fs::path& root, std::int64_t after) {
  std::string names;  // a path has no NUL, and may have anything else
  if (world.rank() == 0)
    for (const fs::path& folder : list_checkpoints(root, after)) names += folder.filename().string() + '\0';
  names = gather_text(world, "checkpoint: list", names)[0];
  std::vector<fs::path> folders;
  for (std::size_t at = 0; at < names.size(); at = names.find('\0', at) + 1)
    folders.push_back(root / names.substr(at, names.find('\0', at) - at));
  return folders;
}

Checkpoint open_checkpoint(Communicator& world, const fs::path& folder) {
  std::optional<Checkpoint> opened;
  agree(world, "checkpoint: opening", [&] { opened.emplace(folder, world.rank(), world.size()); });
  return *std::move(opened);
}

void load_checkpoint(Communicator& world, const Checkpoint& checkpoint, const ParameterStore& store,
                     const Optimizer& optimizer) {
  agree(world, "checkpoint: loading", [&] {
    checkpoint.load_parameters(store);
    checkpoint.load_optimizer(store, optimizer);
  });
}

void check_same_model(const ModelConfig& saved, const ModelConfig& current, const std::string& where) {
  const std::array<std::string_view, 6> free = {"model.transpoints", "model.transpoint_unit",
                                                "model.gate",        "model.memory_converter",
                                                "model.init_std",    "model.norm_eps"};
  Config a, b;
  a.model = saved, b.model = current;
  std::string differences;
  for (const ConfigKey& key : config_keys())
    if (key.section() == "model" && std::find(free.begin(), free.end(), key.name) == free.end() &&
        key.print(a) != key.print(b))
      differences += fmt::format("{}{} is {} there and {} here", differences.empty() ? "" : "; ", key.name,
                                 key.print(a), key.print(b));
  check(differences.empty(), kWhere, "{}: a checkpoint of another model: {}", where, differences);
}

}  // namespace transmamba
