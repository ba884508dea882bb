#include "parallel/checkpoint_shards.h"

#include <cstring>
#include <map>
#include <sstream>

#include "kernels/elementwise.h"

namespace transmamba {
namespace {

namespace fs = std::filesystem;
constexpr std::string_view kWhere = "checkpoint";

/// A run of a parameter's elements: all that other ranks need to know to find its boxes in the shard.
struct Run {
  std::string name;
  ShardSpec shard;
  std::int64_t begin = 0, end = 0;

  std::vector<ShardBox> boxes() const { return shard_boxes(shard, begin, end); }
  /// Names hold no '/', and a data rank owns one run of a parameter at most, so names cannot collide.
  std::string dataset(std::size_t box) const {
    return end - begin == shard.shape().numel() ? name : fmt::format("{}/{}", name, box);
  }
};

/// A tensor in the index: pieces are named without their group, which differs.
struct Whole {
  Shape global;
  std::vector<Hdf5Piece> pieces;
};

Run run_of(const ParameterStore& store, const OwnedRun& owned) {
  const Parameter& p = store.parameters()[owned.parameter];
  return {p.name, p.shard, owned.begin, owned.end};
}

std::vector<std::int64_t> extents(const Shape& shape) {
  std::vector<std::int64_t> out;
  for (int i = 0; i < shape.rank(); ++i) out.push_back(shape[i]);
  return out;
}

std::string to_line(const Run& run) {
  std::string line = fmt::format("{} {} {} {} {} {}", run.name, run.shard.dim, run.shard.parts,
                                 run.shard.index, run.begin, run.end);
  for (const std::int64_t extent : extents(run.shard.global)) line += fmt::format(" {}", extent);
  return line + '\n';
}

Run parse_line(const std::string& line) {
  std::istringstream in(line);
  Run run;
  in >> run.name >> run.shard.dim >> run.shard.parts >> run.shard.index >> run.begin >> run.end;
  for (std::int64_t extent = 0; in >> extent;) run.shard.global.append(extent);
  return run;
}

}  // namespace

std::string shard_name(int rank) { return fmt::format("shard_{:05}.h5", rank); }

View box_view(const View& flat, std::int64_t first, const Shape& extent) {
  return {flat.slice(0, first, first + extent.numel()).raw(), flat.dtype(), extent};
}

/// Pinned memory is slow to get and the system's is slow at its first touch: both happen here.
ShardCopy::ShardCopy(const ParameterStore& store, const Optimizer& optimizer) : optimizer_(optimizer) {
  const Context& context = store.context();
  Allocator& memory = context.host ? *context.host : memory_;
  for (std::size_t g = 0; g < copies_.size(); ++g)
    for (const OwnedRun& owned : optimizer.owned()) {
      Tensor& copy = copies_[g].emplace_back();
      if (!store.parameters()[owned.parameter].primary) continue;
      const View flat = optimizer_views(optimizer, owned)[g];
      copy = Tensor(memory, flat.shape(), flat.dtype());
      std::memset(copy.view().raw(), 0, static_cast<std::size_t>(flat.numel() * size_of(flat.dtype())));
    }
}

void ShardCopy::take(const Stream& stream) const {
  for (std::size_t g = 0; g < copies_.size(); ++g)
    for (std::size_t i = 0; i < copies_[g].size(); ++i) {
      const Tensor& to = copies_[g][i];
      if (!to) continue;
      const View from = optimizer_views(optimizer_, optimizer_.owned()[i])[g];
      if (stream.device == Device::cuda)
        gpu::copy(to.view().raw(), from.raw(), from.numel() * size_of(from.dtype()), stream);
      else
        copy({.x = from, .y = to}, stream);
    }
}

void write_shard(const fs::path& folder, const ShardLabel& label, const ParameterStore& store,
                 const Optimizer& optimizer, const ShardCopy* copy) {
  Hdf5File file = Hdf5File::create(folder / shard_name(label.rank));
  for (std::size_t g = 0; g < kCheckpointGroups.size(); ++g)
    for (std::size_t r = 0; r < optimizer.owned().size(); ++r) {
      const OwnedRun& owned = optimizer.owned()[r];
      if (!store.parameters()[owned.parameter].primary) continue;
      const Run run = run_of(store, owned);
      const View flat = copy ? copy->at(g, r) : optimizer_views(optimizer, owned)[g];
      const std::vector<ShardBox> boxes = run.boxes();
      for (std::size_t i = 0; i < boxes.size(); ++i) {
        const View box = box_view(flat, boxes[i].local - run.begin, boxes[i].extent);
        file.write(kCheckpointGroups[g] + run.dataset(i), copy ? Tensor(box) : to_host(store.context(), box));
      }
    }
  file.set_attribute("step", label.step);
  file.set_attribute("shard", std::int64_t{label.rank});
  file.set_attribute("shards", std::int64_t{label.ranks});
  file.close();
}

void check_shard(const fs::path& folder, const ShardLabel& label) {
  const Hdf5File file = Hdf5File::open(folder / shard_name(label.rank));
  const auto number = [&](const char* name) {
    return file.has_attribute(name) ? file.attribute<std::int64_t>(name) : -1;
  };
  check(number("step") == label.step && number("shard") == label.rank && number("shards") == label.ranks,
        kWhere, "{}: expected shard {} of {} of step {}, found shard {} of {} of step {}",
        file.path().string(), label.rank, label.ranks, label.step, number("shard"), number("shards"),
        number("step"));
}

std::string describe_shard(const ParameterStore& store, const Optimizer& optimizer) {
  std::string lines;
  for (const OwnedRun& owned : optimizer.owned())
    if (store.parameters()[owned.parameter].primary) lines += to_line(run_of(store, owned));
  return lines;
}

void write_tensors(Hdf5File& index, DType dtype, const std::vector<std::string>& descriptions) {
  std::map<std::string, Whole> tensors;
  for (std::size_t rank = 0; rank < descriptions.size(); ++rank) {
    std::istringstream lines(descriptions[rank]);
    for (std::string line; std::getline(lines, line);) {
      const Run run = parse_line(line);
      Whole& tensor = tensors[run.name];
      tensor.global = run.shard.global;
      const std::vector<ShardBox> boxes = run.boxes();
      for (std::size_t i = 0; i < boxes.size(); ++i)
        tensor.pieces.push_back({shard_name(static_cast<int>(rank)), run.dataset(i), extents(boxes[i].offset),
                                 extents(boxes[i].extent)});
    }
  }
  for (const char* group : kCheckpointGroups)
    for (const auto& [name, tensor] : tensors) {
      std::vector<Hdf5Piece> pieces = tensor.pieces;
      for (Hdf5Piece& piece : pieces) piece.source_dataset = group + piece.source_dataset;
      index.write_virtual(group + name, extents(tensor.global), dtype, pieces);
    }
}

}  // namespace transmamba
