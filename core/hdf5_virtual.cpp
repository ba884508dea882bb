// Virtual datasets.
//
// HDF5 shows the fill value, silently, where a source file is missing or cannot be opened. A checkpoint with
// a lost shard would load as zeros. So the fill value is NaN, and reads here check every source first.
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

std::vector<Hdf5File::Impl::Source> Hdf5File::Impl::sources_of(hid_t dataset, const std::string& name,
                                                               const Extents& offset,
                                                               const Extents& extent) const {
  std::vector<Source> needed;
  const Handle properties(H5Dget_create_plist(dataset), H5Pclose);
  if (H5Pget_layout(properties) != H5D_VIRTUAL) return needed;
  std::size_t count = 0;
  must(H5Pget_virtual_count(properties, &count), name, "its sources cannot be read");
  std::vector<hsize_t> low(extent.size()), high(extent.size());
  for (std::size_t i = 0; i < count; ++i) {
    const Handle part =
        own(H5Pget_virtual_vspace(properties, i), H5Sclose, name, "its sources cannot be read");
    // Of a part without a bounded place we cannot tell, so it counts.
    bool touches = true;
    if (H5Sget_simple_extent_ndims(part) == static_cast<int>(extent.size()) &&
        H5Sget_select_bounds(part, low.data(), high.data()) >= 0)
      for (std::size_t d = 0; d < extent.size(); ++d) {
        const auto begin = static_cast<hsize_t>(offset[d]), end = begin + static_cast<hsize_t>(extent[d]);
        touches = touches && low[d] < end && begin <= high[d];
      }
    if (!touches) continue;
    Source source;
    source.file = unescaped(
        named([&](char* to, std::size_t size) { return H5Pget_virtual_filename(properties, i, to, size); }));
    source.dataset = unescaped(
        named([&](char* to, std::size_t size) { return H5Pget_virtual_dsetname(properties, i, to, size); }));
    if (source.dataset.starts_with('/')) source.dataset.erase(0, 1);
    needed.push_back(std::move(source));
  }
  return needed;
}

namespace {

std::filesystem::path path_of(const std::filesystem::path& index, const std::string& source) {
  return source == "." ? index : index.parent_path() / source;  // an absolute name stays
}

}  // namespace

void Hdf5File::Impl::check_sources(const std::string& name, const std::vector<Source>& needed) const {
  for (const Source& source : needed) {
    auto found = sources.find(source.file);
    if (found == sources.end()) {
      try {
        const auto names = Hdf5File::open(path_of(path, source.file)).datasets();
        found = sources.emplace(source.file, std::set<std::string>(names.begin(), names.end())).first;
      } catch (const Error& error) {
        fail("hdf5", "{}: {}: a part of it is in another file: {}", path.string(), name, error.what());
      }
    }
    check(found->second.contains(source.dataset), "hdf5",
          "{}: {}: a part of it is missing: no dataset {} in {}", path.string(), name, source.dataset,
          source.file);
  }
}

void Hdf5File::Impl::blame_source(const std::string& name, const std::vector<Source>& needed) const {
  for (const Source& source : needed) try {
      Hdf5File::open(path_of(path, source.file)).read_vector<double>(source.dataset);
    } catch (const Error& error) {
      fail("hdf5", "{}: {}: a part of it is in another file: {}", path.string(), name, error.what());
    }
}

}  // namespace transmamba
