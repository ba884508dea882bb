#include "parallel/checkpoint.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <iterator>
#include <system_error>

#include "core/config_keys.h"
#include "parallel/checkpoint_folder.h"
#include "parallel/checkpoint_shards.h"
#include "parallel/comm/agree.h"

namespace transmamba {
namespace {

namespace fs = std::filesystem;
constexpr std::string_view kWhere = "checkpoint";

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

}  // namespace

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
  check(version == kCheckpointVersion, kWhere, "{}: format version: expected {}, got {}", folder.string(),
        kCheckpointVersion, version);
  state_.step = index_.attribute<std::int64_t>("step");
  state_.consumed_sequences = index_.attribute<std::int64_t>("consumed_sequences");
  const auto shards = index_.attribute<std::int64_t>("shards");
  check(state_.step >= 0 && state_.consumed_sequences >= 0 && shards >= 1 && shards < 1 << 30, kWhere,
        "{}: index.h5: expected a step and consumed_sequences of at least 0 and 1 to {} shards, got {}, {} "
        "and {}",
        folder.string(), (1 << 30) - 1, state_.step, state_.consumed_sequences, shards);
  for (int shard = rank; shard < shards; shard += ranks)
    check_shard(folder, {shard, static_cast<int>(shards), state_.step});
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
