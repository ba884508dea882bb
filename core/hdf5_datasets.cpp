// Reading and writing datasets.
#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <optional>

#include "core/hdf5_internal.h"

namespace transmamba {

using hdf5::Handle;
using hdf5::Lock;
using hdf5::native_type;

namespace hdf5 {
template <Hdf5Number T>
hid_t native_type() {
  if constexpr (std::is_same_v<T, float>) return H5T_NATIVE_FLOAT;
  if constexpr (std::is_same_v<T, double>) return H5T_NATIVE_DOUBLE;
  if constexpr (std::is_same_v<T, std::int32_t>) return H5T_NATIVE_INT32;
  if constexpr (std::is_same_v<T, std::int64_t>) return H5T_NATIVE_INT64;
  if constexpr (std::is_same_v<T, std::uint8_t>) return H5T_NATIVE_UINT8;
  if constexpr (std::is_same_v<T, std::uint16_t>) return H5T_NATIVE_UINT16;
  if constexpr (std::is_same_v<T, std::uint32_t>) return H5T_NATIVE_UINT32;
}
}  // namespace hdf5

namespace {

using Extents = Hdf5File::Extents;

constexpr std::int64_t kChunkBytes = 1 << 20;  // what one flipped byte makes unreadable, and one read costs
constexpr hsize_t kStreamChunk = 1 << 16;      // elements

std::string text(const Extents& shape) {
  std::string out;
  for (const std::int64_t extent : shape) out += (out.empty() ? "" : ", ") + std::to_string(extent);
  return "(" + out + ")";
}

std::int64_t volume(const Extents& shape) {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

Extents extents(const Shape& shape) {
  Extents out;
  for (int i = 0; i < shape.rank(); ++i) out.push_back(shape[i]);
  return out;
}

std::vector<hsize_t> unsigned_extents(const Extents& shape) { return {shape.begin(), shape.end()}; }

Handle dataspace(const Extents& shape) {
  const auto extent = unsigned_extents(shape);
  return shape.empty()
             ? Handle(H5Screate(H5S_SCALAR), H5Sclose)
             : Handle(H5Screate_simple(static_cast<int>(extent.size()), extent.data(), nullptr), H5Sclose);
}

hid_t native_type_of(DType dtype, const std::string& where) {
  switch (dtype) {
    case DType::f32: return H5T_NATIVE_FLOAT;
    case DType::f64: return H5T_NATIVE_DOUBLE;
    case DType::i32: return H5T_NATIVE_INT32;
    default: fail("hdf5", "{}: expected float32, float64 or int32, got {}", where, to_string(dtype));
  }
}

// Copies between a strided view and a dense block; `width` bytes an element.
template <bool kGather>
void copy_strided(std::byte* data, std::byte* dense, const Shape& shape, const Shape& stride, int dim,
                  std::int64_t width, std::int64_t& at) {
  if (dim == shape.rank()) {
    std::memcpy(kGather ? dense + at : data, kGather ? data : dense + at, static_cast<std::size_t>(width));
    at += width;
    return;
  }
  for (std::int64_t i = 0; i < shape[dim]; ++i)
    copy_strided<kGather>(data + i * stride[dim] * width, dense, shape, stride, dim + 1, width, at);
}

// HDF5 clamps silently; we would rather know.
H5T_conv_ret_t refuse_overflow(H5T_conv_except_t kind, hid_t, hid_t to, void*, void*, void*) {
  const bool range = kind == H5T_CONV_EXCEPT_RANGE_HI || kind == H5T_CONV_EXCEPT_RANGE_LOW;
  return range && H5Tget_class(to) == H5T_INTEGER ? H5T_CONV_ABORT : H5T_CONV_UNHANDLED;
}

}  // namespace

// ---- reading

void Hdf5File::Impl::read(const std::string& name, const Extents* offset, const Extents& extent, hid_t type,
                          void* out) const {
  const hid_t from = dataset(name);
  const Handle stored = own(H5Dget_type(from), H5Tclose, name, "its type cannot be read");
  const H5T_class_t kind = H5Tget_class(stored), wanted = H5Tget_class(type);
  check(kind == H5T_INTEGER || (kind == H5T_FLOAT && wanted == H5T_FLOAT), "hdf5",
        "{}: {}: expected {}, got {}", path.string(), name, hdf5::describe_type(type),
        hdf5::describe_type(stored));
  check_sources(from, name);
  if (volume(extent) == 0) return;
  const Handle file_space = own(H5Dget_space(from), H5Sclose, name, "its shape cannot be read");
  const Handle memory_space = dataspace(extent);
  if (offset != nullptr && !extent.empty()) {
    const auto start = unsigned_extents(*offset), count = unsigned_extents(extent);
    must(H5Sselect_hyperslab(file_space, H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr), name,
         "cannot be read");
  }
  const Handle transfer(H5Pcreate(H5P_DATASET_XFER), H5Pclose);
  if (kind == H5T_INTEGER && wanted == H5T_INTEGER)
    must(H5Pset_type_conv_cb(transfer, refuse_overflow, nullptr), name, "cannot be read");
  must(H5Dread(from, type, memory_space, file_space, transfer, out), name, "cannot be read");
}

namespace {

void check_block(const std::string& path, const std::string& name, const Extents& shape,
                 const Extents& offset, const Extents& extent) {
  bool inside = offset.size() == shape.size() && extent.size() == shape.size();
  for (std::size_t i = 0; inside && i < shape.size(); ++i)
    inside = offset[i] >= 0 && extent[i] >= 0 && offset[i] <= shape[i] - extent[i];
  check(inside, "hdf5", "{}: {}: expected a block inside shape {}, got offset {} extent {}", path, name,
        text(shape), text(offset), text(extent));
}

}  // namespace

void Hdf5File::read(const std::string& name, const View& out) const {
  const Lock lock;
  const Extents stored = shape(name), wanted = extents(out.shape());
  check(stored == wanted, "hdf5", "{}: {}: expected shape {}, the file has {}", impl_->path.string(), name,
        text(wanted), text(stored));
  read(name, Extents(stored.size(), 0), out);
}

void Hdf5File::read(const std::string& name, const Extents& offset, const View& out) const {
  const Lock lock;
  const Extents extent = extents(out.shape());
  check_block(impl_->path.string(), name, shape(name), offset, extent);
  const hid_t type = native_type_of(out.dtype(), impl_->path.string() + ": " + name);
  if (impl_->read_pieces(name, offset, out)) return;
  if (out.contiguous()) return impl_->read(name, &offset, extent, type, out.raw());
  std::vector<std::byte> dense(static_cast<std::size_t>(out.numel() * size_of(out.dtype())));
  impl_->read(name, &offset, extent, type, dense.data());
  std::int64_t at = 0;
  copy_strided<false>(out.raw(), dense.data(), out.shape(), out.strides(), 0, size_of(out.dtype()), at);
}

template <Hdf5Number T>
void Hdf5File::read(const std::string& name, std::int64_t offset, std::span<T> out) const {
  const Lock lock;
  const Extents start{offset}, extent{static_cast<std::int64_t>(out.size())};
  check_block(impl_->path.string(), name, shape(name), start, extent);
  impl_->read(name, &start, extent, native_type<T>(), out.data());
}

template <Hdf5Number T>
std::vector<T> Hdf5File::read_vector(const std::string& name) const {
  const Lock lock;
  const Extents stored = shape(name);
  std::vector<T> out(static_cast<std::size_t>(volume(stored)));
  impl_->read(name, nullptr, stored, native_type<T>(), out.data());
  return out;
}

template <Hdf5Number T>
T Hdf5File::read_scalar(const std::string& name) const {
  const Lock lock;
  const Extents stored = shape(name);
  check(volume(stored) == 1, "hdf5", "{}: {}: expected one number, got shape {}", impl_->path.string(), name,
        text(stored));
  return read_vector<T>(name).front();
}

// ---- writing

Handle Hdf5File::Impl::create_dataset(const std::string& name, hid_t type, hid_t space, hid_t properties) {
  const Handle links(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
  must(H5Pset_create_intermediate_group(links, 1), name, "cannot be created");
  must(H5Pset_obj_track_times(properties, false), name, "cannot be created");  // same run, same bytes
  return own(H5Dcreate2(file, name.c_str(), type, space, links, properties, H5P_DEFAULT), H5Dclose, name,
             "cannot be created");
}

void Hdf5File::Impl::write(const std::string& name, const Extents& shape, hid_t type, const void* values) {
  std::optional<Lock> turn(std::in_place);
  require_writable(name);
  const Handle properties(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  const std::int64_t count = volume(shape);
  std::int64_t rows = 0;  // of a piece; 0: all at once
  if (shape.empty() || count == 0) {
    // Cannot be chunked. Compact data lies in the object's header, which has a checksum.
    must(H5Pset_layout(properties, H5D_COMPACT), name, "cannot be created");
  } else {
    // Cut the outer dims until a chunk is small enough, into equal parts so that the last one is not mostly
    // padding.
    std::int64_t bytes = count * static_cast<std::int64_t>(H5Tget_size(type));
    auto chunk = unsigned_extents(shape);
    for (std::size_t dim = 0; dim < chunk.size() && bytes > kChunkBytes; ++dim) {
      const auto extent = static_cast<std::int64_t>(chunk[dim]);
      const std::int64_t parts = std::min(extent, (bytes + kChunkBytes - 1) / kChunkBytes);
      const std::int64_t part = (extent + parts - 1) / parts;
      chunk[dim] = static_cast<hsize_t>(part);
      bytes = bytes / extent * part;
    }
    must(H5Pset_chunk(properties, static_cast<int>(chunk.size()), chunk.data()), name, "cannot be created");
    must(H5Pset_fletcher32(properties), name, "cannot be created");
    if (static_cast<std::int64_t>(chunk[0]) < shape[0]) rows = static_cast<std::int64_t>(chunk[0]);
  }
  const Handle space = dataspace(shape);
  {
    const Handle to = create_dataset(name, type, space, properties);
    if (count > 0 && rows == 0)
      must(H5Dwrite(to, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values), name, "cannot be written");
    const std::int64_t row_bytes =
        rows == 0 ? 0 : count / shape[0] * static_cast<std::int64_t>(H5Tget_size(type));
    for (std::int64_t row = 0; rows > 0 && row < shape[0]; row += rows) {  // whole chunks
      if (row > 0) turn.reset(), Lock::let_others(), turn.emplace();
      Extents start(shape.size(), 0), extent = shape;
      start[0] = row, extent[0] = std::min(rows, shape[0] - row);
      const auto first = unsigned_extents(start), size = unsigned_extents(extent);
      must(H5Sselect_hyperslab(space, H5S_SELECT_SET, first.data(), nullptr, size.data(), nullptr), name,
           "cannot be written");
      const Handle memory = dataspace(extent);
      must(H5Dwrite(to, type, memory, space, H5P_DEFAULT,
                    static_cast<const std::byte*>(values) + row * row_bytes),
           name, "cannot be written");
    }
  }
  check_written(name);
}

void Hdf5File::write(const std::string& name, const ConstView& values) {
  const hid_t type = [&] {
    const Lock lock;
    return native_type_of(values.dtype(), impl_->path.string() + ": " + name);
  }();
  if (values.contiguous()) return impl_->write(name, extents(values.shape()), type, values.raw());
  std::vector<std::byte> dense(static_cast<std::size_t>(values.numel() * size_of(values.dtype())));
  std::int64_t at = 0;
  copy_strided<true>(const_cast<std::byte*>(values.raw()), dense.data(), values.shape(), values.strides(), 0,
                     size_of(values.dtype()), at);
  impl_->write(name, extents(values.shape()), type, dense.data());
}

template <Hdf5Number T>
void Hdf5File::write(const std::string& name, const std::vector<T>& values) {
  const Lock lock;  // small things: all at once
  impl_->write(name, {static_cast<std::int64_t>(values.size())}, native_type<T>(), values.data());
}

template <Hdf5Number T>
void Hdf5File::write_scalar(const std::string& name, T value) {
  const Lock lock;
  impl_->write(name, {}, native_type<T>(), &value);
}

void Hdf5File::create_group(const std::string& name) {
  const Lock lock;
  impl_->require_writable(name);
  const Handle links(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
  impl_->must(H5Pset_create_intermediate_group(links, 1), name, "cannot be created");
  impl_->own(H5Gcreate2(impl_->file, name.c_str(), links, H5P_DEFAULT, H5P_DEFAULT), H5Gclose, name,
             "cannot be created");
}

// ---- streams

template <Hdf5Number T>
void Hdf5File::create_appendable(const std::string& name) {
  const Lock lock;
  impl_->require_writable(name);
  const hsize_t none = 0, unlimited = H5S_UNLIMITED, chunk = kStreamChunk;
  const Handle space =
      impl_->own(H5Screate_simple(1, &none, &unlimited), H5Sclose, name, "cannot be created");
  const Handle properties(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  impl_->must(H5Pset_chunk(properties, 1, &chunk), name, "cannot be created");
  impl_->must(H5Pset_fletcher32(properties), name, "cannot be created");
  Impl::Stream stream;
  stream.type = native_type<T>();
  stream.width = sizeof(T);
  stream.dataset = impl_->create_dataset(name, stream.type, space, properties);
  stream.buffer.reserve(kStreamChunk * sizeof(T));
  impl_->streams.emplace(name, std::move(stream));
  impl_->check_written(name);
}

template <Hdf5Number T>
void Hdf5File::append(const std::string& name, std::span<const T> values) {
  const Lock lock;
  impl_->require_writable(name);
  const auto it = impl_->streams.find(name);
  check(it != impl_->streams.end(), "hdf5", "{}: {}: not made by create_appendable", impl_->path.string(),
        name);
  Impl::Stream& stream = it->second;
  check(H5Tequal(stream.type, native_type<T>()) > 0, "hdf5", "{}: {}: expected elements of {}, got {}",
        impl_->path.string(), name, hdf5::describe_type(stream.type), hdf5::describe_type(native_type<T>()));
  // Whole chunks only: a chunk written twice would be read back and summed again.
  const std::size_t full = kStreamChunk * sizeof(T);
  const auto* from = reinterpret_cast<const char*>(values.data());
  for (std::size_t left = values.size_bytes(); left > 0;) {
    const std::size_t take = std::min(left, full - stream.buffer.size());
    stream.buffer.insert(stream.buffer.end(), from, from + take);
    from += take, left -= take;
    if (stream.buffer.size() == full) impl_->flush(stream, name);
  }
}

void Hdf5File::Impl::flush(Stream& stream, const std::string& name) {
  const hsize_t count = stream.buffer.size() / stream.width, start = stream.length, end = start + count;
  if (count == 0) return;
  must(H5Dset_extent(stream.dataset, &end), name, "cannot be written");
  const Handle space = own(H5Dget_space(stream.dataset), H5Sclose, name, "cannot be written");
  must(H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, nullptr, &count, nullptr), name,
       "cannot be written");
  const Handle memory = dataspace({static_cast<std::int64_t>(count)});
  must(H5Dwrite(stream.dataset, stream.type, memory, space, H5P_DEFAULT, stream.buffer.data()), name,
       "cannot be written");
  stream.length = end;
  stream.buffer.clear();
  check_written(name);
}

void Hdf5File::Impl::finish_streams() {
  for (auto& [name, stream] : streams) flush(stream, name);
}

#define TRANSMAMBA_HDF5_NUMBER(T)                                                        \
  template hid_t hdf5::native_type<T>();                                                 \
  template void Hdf5File::read<T>(const std::string&, std::int64_t, std::span<T>) const; \
  template std::vector<T> Hdf5File::read_vector<T>(const std::string&) const;            \
  template T Hdf5File::read_scalar<T>(const std::string&) const;                         \
  template void Hdf5File::write<T>(const std::string&, const std::vector<T>&);           \
  template void Hdf5File::write_scalar<T>(const std::string&, T);                        \
  template void Hdf5File::create_appendable<T>(const std::string&);                      \
  template void Hdf5File::append<T>(const std::string&, std::span<const T>);
TRANSMAMBA_HDF5_NUMBER(float)
TRANSMAMBA_HDF5_NUMBER(double)
TRANSMAMBA_HDF5_NUMBER(std::int32_t)
TRANSMAMBA_HDF5_NUMBER(std::int64_t)
TRANSMAMBA_HDF5_NUMBER(std::uint8_t)
TRANSMAMBA_HDF5_NUMBER(std::uint16_t)
TRANSMAMBA_HDF5_NUMBER(std::uint32_t)
#undef TRANSMAMBA_HDF5_NUMBER

}  // namespace transmamba
