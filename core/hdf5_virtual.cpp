// Virtual datasets.
//
// HDF5 shows the fill value, silently, where a source file is missing or cannot be opened. A checkpoint with
// a lost shard would load as zeros. So the fill value is NaN, and reads here check every source first.
//
// Tensors are read from the sources that a block needs, one after the other, and not through HDF5's virtual
// datasets: an error then names the file that is damaged, a source of another shape is noticed, and files
// are opened as everywhere else here, without locks. (HDF5 opens sources with locks, and refuses a file that
// is open both ways, such as by another thread that reads the same checkpoint.)
#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>

#include "core/hdf5_internal.h"

namespace transmamba {

using hdf5::Handle;
using hdf5::Lock;

namespace {

// In a source file's name HDF5 reads %b as a block number and %% as %.
std::string escaped(const std::string& name) {
  std::string out;
  for (const char c : name) out += c == '%' ? std::string("%%") : std::string(1, c);
  return out;
}

std::string unescaped(const std::string& name) {
  std::string out;
  for (std::size_t i = 0; i < name.size(); ++i) {
    out += name[i];
    if (name[i] == '%' && i + 1 < name.size() && name[i + 1] == '%') ++i;
  }
  return out;
}

template <class Get>
std::string named(Get get) {
  const ssize_t length = get(nullptr, 0);
  if (length < 0) return "";
  std::string name(static_cast<std::size_t>(length), '\0');
  get(name.data(), name.size() + 1);
  return name;
}

std::int64_t volume(const std::vector<std::int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

bool overlap(const Hdf5Piece& a, const Hdf5Piece& b) {
  if (volume(a.extent) == 0 || volume(b.extent) == 0) return false;
  for (std::size_t d = 0; d < a.extent.size(); ++d)
    if (a.offset[d] + a.extent[d] <= b.offset[d] || b.offset[d] + b.extent[d] <= a.offset[d]) return false;
  return true;
}

void check_tiling(const std::string& where, const std::vector<std::int64_t>& shape,
                  const std::vector<Hdf5Piece>& pieces) {
  check(!shape.empty(), "hdf5", "{}: a scalar cannot be virtual", where);
  std::int64_t covered = 0;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const Hdf5Piece& piece = pieces[i];
    check(piece.offset.size() == shape.size() && piece.extent.size() == shape.size(), "hdf5",
          "{}: piece {}: expected {} dims, got offset of {} and extent of {}", where, i, shape.size(),
          piece.offset.size(), piece.extent.size());
    for (std::size_t d = 0; d < shape.size(); ++d)
      check(piece.offset[d] >= 0 && piece.extent[d] >= 0 && piece.offset[d] + piece.extent[d] <= shape[d],
            "hdf5", "{}: piece {}: dim {}: expected a part of [0, {}), got [{}, {})", where, i, d, shape[d],
            piece.offset[d], piece.offset[d] + piece.extent[d]);
    covered += volume(piece.extent);
    for (std::size_t j = 0; j < i; ++j)
      check(!overlap(piece, pieces[j]), "hdf5", "{}: pieces {} and {} overlap", where, j, i);
  }
  check(covered == volume(shape), "hdf5", "{}: expected pieces of {} elements in all, got {}", where,
        volume(shape), covered);
}

}  // namespace

void Hdf5File::write_virtual(const std::string& name, const Extents& shape, DType dtype,
                             const std::vector<Hdf5Piece>& pieces) {
  const Lock lock;
  impl_->require_writable(name);
  check_tiling(impl_->path.string() + ": " + name, shape, pieces);
  const int rank = static_cast<int>(shape.size());
  const auto space_of = [&](const Extents& extent) {
    const std::vector<hsize_t> e(extent.begin(), extent.end());
    return impl_->own(H5Screate_simple(rank, e.data(), nullptr), H5Sclose, name, "cannot be created");
  };
  check(dtype != DType::bf16, "hdf5", "{}: {}: expected float32, float64 or int32, got bfloat16",
        impl_->path.string(), name);
  const hid_t type = dtype == DType::f32   ? H5T_NATIVE_FLOAT
                     : dtype == DType::f64 ? H5T_NATIVE_DOUBLE
                                           : H5T_NATIVE_INT32;
  const Handle properties(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::int32_t lowest = std::numeric_limits<std::int32_t>::min();
  const bool integer = dtype == DType::i32;
  impl_->must(H5Pset_fill_value(properties, integer ? H5T_NATIVE_INT32 : H5T_NATIVE_DOUBLE,
                                integer ? static_cast<const void*>(&lowest) : &nan),
              name, "cannot be created");
  const Handle space = space_of(shape);
  for (const Hdf5Piece& piece : pieces) {
    if (volume(piece.extent) == 0) continue;
    const std::vector<hsize_t> start(piece.offset.begin(), piece.offset.end());
    const std::vector<hsize_t> count(piece.extent.begin(), piece.extent.end());
    const Handle part(H5Scopy(space), H5Sclose);
    impl_->must(H5Sselect_hyperslab(part, H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr), name,
                "cannot be created");
    impl_->must(H5Pset_virtual(properties, part, escaped(piece.source_file).c_str(),
                               escaped(piece.source_dataset).c_str(), space_of(piece.extent)),
                name, "cannot be created");
  }
  impl_->create_dataset(name, type, space, properties);
  impl_->check_written(name);
}

void Hdf5File::Impl::check_sources(hid_t dataset, const std::string& name) const {
  const Handle properties(H5Dget_create_plist(dataset), H5Pclose);
  if (H5Pget_layout(properties) != H5D_VIRTUAL) return;
  std::size_t count = 0;
  must(H5Pget_virtual_count(properties, &count), name, "its sources cannot be read");
  for (std::size_t i = 0; i < count; ++i) {
    const std::string file_name = unescaped(
        named([&](char* to, std::size_t size) { return H5Pget_virtual_filename(properties, i, to, size); }));
    std::string source = unescaped(
        named([&](char* to, std::size_t size) { return H5Pget_virtual_dsetname(properties, i, to, size); }));
    if (source.starts_with('/')) source.erase(0, 1);
    auto found = sources.find(file_name);
    if (found == sources.end()) {
      try {
        const auto full = file_name == "." ? path : path.parent_path() / file_name;  // an absolute name stays
        const auto names = Hdf5File::open(full).datasets();
        found = sources.emplace(file_name, std::set<std::string>(names.begin(), names.end())).first;
      } catch (const Error& error) {
        fail("hdf5", "{}: {}: a part of it is in another file: {}", path.string(), name, error.what());
      }
    }
    check(found->second.contains(source), "hdf5", "{}: {}: a part of it is missing: no dataset {} in {}",
          path.string(), name, source, file_name);
  }
}

namespace {

/// Whether a selection is one dense block, and which.
bool block_of(hid_t space, std::vector<std::int64_t>& offset, std::vector<std::int64_t>& extent) {
  const int rank = H5Sget_simple_extent_ndims(space);
  const hssize_t points = H5Sget_select_npoints(space);
  if (rank <= 0 || points <= 0) return false;
  std::vector<hsize_t> low(static_cast<std::size_t>(rank)), high(low);
  if (H5Sget_select_bounds(space, low.data(), high.data()) < 0) return false;
  offset.assign(low.begin(), low.end());
  extent.clear();
  for (std::size_t d = 0; d < low.size(); ++d)
    extent.push_back(static_cast<std::int64_t>(high[d] - low[d] + 1));
  return volume(extent) == points;
}

/// Whether a source's selection is all of a dataset of that shape. Files hold no more of it than "all".
bool is_whole(hid_t space, const std::vector<std::int64_t>& shape) {
  if (H5Sget_select_type(space) == H5S_SEL_ALL) return true;
  std::vector<std::int64_t> offset, extent;
  return block_of(space, offset, extent) && extent == shape &&
         offset == std::vector(shape.size(), std::int64_t{0});
}

}  // namespace

const Hdf5File& Hdf5File::Impl::source(const std::string& file_name, const std::string& name) const {
  constexpr std::size_t kMostOpen = 32;  // of a thousand that a process may have
  const auto found = open_sources.find(file_name);
  if (found != open_sources.end()) return found->second;
  if (open_sources.size() == kMostOpen) open_sources.clear();
  try {
    return open_sources
        .emplace(file_name, Hdf5File::open(file_name == "." ? path : path.parent_path() / file_name))
        .first->second;
  } catch (const Error& error) {
    fail("hdf5", "{}: {}: a part of it is in another file: {}", path.string(), name, error.what());
  }
}

bool Hdf5File::Impl::read_pieces(const std::string& name, const Extents& offset, const View& out) const {
  const hid_t whole = dataset(name);
  const Handle properties(H5Dget_create_plist(whole), H5Pclose);
  if (H5Pget_layout(properties) != H5D_VIRTUAL) return false;
  struct Part {
    std::string file, dataset;
    Extents extent, from;
    View to;
  };
  std::vector<Part> parts;
  std::int64_t covered = 0;
  std::size_t count = 0;
  must(H5Pget_virtual_count(properties, &count), name, "its sources cannot be read");
  for (std::size_t i = 0; i < count; ++i) {
    Part part;
    Extents at;
    const Handle shown(H5Pget_virtual_vspace(properties, i), H5Sclose);
    const Handle stored(H5Pget_virtual_srcspace(properties, i), H5Sclose);
    if (!block_of(shown, at, part.extent) || at.size() != offset.size() || !is_whole(stored, part.extent))
      return false;
    part.to = out;
    for (int d = 0; d < out.rank() && part.to.numel() > 0; ++d) {
      const auto k = static_cast<std::size_t>(d);
      const std::int64_t begin = std::max(at[k], offset[k]),
                         end = std::min(at[k] + part.extent[k], offset[k] + out.dim(d));
      part.from.push_back(begin - at[k]);
      part.to = begin < end ? part.to.slice(d, begin - offset[k], end - offset[k]) : part.to.slice(d, 0, 0);
    }
    if (part.to.numel() == 0) continue;
    covered += part.to.numel();
    part.file = unescaped(
        named([&](char* to, std::size_t size) { return H5Pget_virtual_filename(properties, i, to, size); }));
    part.dataset = unescaped(
        named([&](char* to, std::size_t size) { return H5Pget_virtual_dsetname(properties, i, to, size); }));
    parts.push_back(std::move(part));
  }
  if (covered != out.numel()) return false;
  for (const Part& part : parts) {
    const Hdf5File& from = source(part.file, name);
    check(from.has(part.dataset), "hdf5", "{}: {}: a part of it is missing: no dataset {} in {}",
          path.string(), name, part.dataset, from.path().string());
    check(from.shape(part.dataset) == part.extent, "hdf5",
          "{}: {}: a part of it is in another file: {}: {} has another shape than it had", path.string(),
          name, from.path().string(), part.dataset);
    from.read(part.dataset, part.from, part.to);
  }
  return true;
}

}  // namespace transmamba
