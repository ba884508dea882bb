// HDF5 files: the only door to the HDF5 library (core/hdf5_*.cpp; nothing else includes <hdf5.h>).
//
// Every error is an Error that names the file, the object inside it and HDF5's innermost description; HDF5
// itself prints nothing. Object names are paths such as "layers/0/weight"; "/" or "" is the root.
//
// Damage is noticed: chunks carry Fletcher32 sums, scalars, short attributes and all metadata are in
// checksummed headers (latest file format), so that a flipped byte makes open or read throw instead of
// changing a number.
//
// Threads: the library is not thread-safe, so all calls of a process take turns on one lock. Different
// threads may use different files; one file belongs to one thread at a time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "kernels/types.h"

namespace transmamba {

/// Element types of vectors and streams: float, double, int32, int64, uint8, uint16, uint32.
template <class T>
concept Hdf5Number = std::is_same_v<T, float> || std::is_same_v<T, double> ||
    std::is_same_v<T, std::int32_t> || std::is_same_v<T, std::int64_t> || std::is_same_v<T, std::uint8_t> ||
    std::is_same_v<T, std::uint16_t> || std::is_same_v<T, std::uint32_t>;

using Hdf5Attribute = std::variant<std::int64_t, double, bool, std::string>;

/// One block of a virtual dataset: all of `source_dataset`, whose shape is `extent`, lies at `offset`.
struct Hdf5Piece {
  std::string source_file;  ///< relative to the folder of the file that holds the virtual dataset
  std::string source_dataset;
  std::vector<std::int64_t> offset;
  std::vector<std::int64_t> extent;
};

class Hdf5File {
 public:
  using Extents = std::vector<std::int64_t>;

  /// Read-only. A missing, empty, foreign, truncated, unfinished or damaged file each say so.
  static Hdf5File open(const std::filesystem::path& path);
  /// A new file; one that is there is emptied.
  static Hdf5File create(const std::filesystem::path& path);

  Hdf5File(Hdf5File&&) noexcept;
  Hdf5File& operator=(Hdf5File&&) noexcept;
  ~Hdf5File();  ///< closes, ignoring errors: whoever writes calls close()

  /// Writes everything out, fsyncs a file made by create(), and closes. Throws if anything, now or earlier,
  /// could not be written (disk full, file size limit, ..); the file is then closed and not usable, and the
  /// process may go on with other files and exit normally. A second call does nothing.
  void close();

  const std::filesystem::path& path() const;

  // ---- what is there
  bool has(const std::string& name) const;
  /// Full names without a leading '/', sorted, of all datasets at any depth below `group`.
  std::vector<std::string> datasets(const std::string& group = "/") const;
  Extents shape(const std::string& dataset) const;  ///< empty for a scalar
  /// "float32", "int64", "uint16", .., or a word for what is not a number.
  std::string element_type(const std::string& dataset) const;

  // ---- reading. Integers convert to floating point and between widths, floating point to floating point.
  // Throws where a shape differs, a floating-point dataset is read as integers, or an integer does not fit.
  /// A whole dataset. `out`: f32, f64 or i32, any strides.
  void read(const std::string& dataset, const View& out) const;
  /// The block of shape out.shape() at `offset`.
  void read(const std::string& dataset, const Extents& offset, const View& out) const;
  /// A 1-D run [offset, offset + out.size()).
  template <Hdf5Number T>
  void read(const std::string& dataset, std::int64_t offset, std::span<T> out) const;
  /// All elements in row-major order, whatever the shape.
  template <Hdf5Number T>
  std::vector<T> read_vector(const std::string& dataset) const;
  template <Hdf5Number T>
  T read_scalar(const std::string& dataset) const;

  // ---- writing (create() only). Groups on the way are made. Names that exist throw.
  /// f32, f64 or i32, any strides; scalars and empty shapes too.
  void write(const std::string& dataset, const ConstView& values);
  template <Hdf5Number T>
  void write(const std::string& dataset, const std::vector<T>& values);
  template <Hdf5Number T>
  void write_scalar(const std::string& dataset, T value);
  void create_group(const std::string& group);

  /// A dataset that shows the pieces of other files (or of this one, source_file ".") at their place in
  /// `shape`. The pieces must tile it exactly. Reading it here throws when a source is missing or damaged;
  /// other readers see NaN (the lowest number for i32) there, never zeros.
  void write_virtual(const std::string& dataset, const Extents& shape, DType dtype,
                     const std::vector<Hdf5Piece>& pieces);

  /// A 1-D dataset for streaming: create once, append any number of times. Appended numbers can be read back
  /// after close().
  template <Hdf5Number T>
  void create_appendable(const std::string& dataset);
  template <Hdf5Number T>
  void append(const std::string& dataset, std::span<const T> values);

  // ---- attributes, of the root or a named group or dataset. Setting one again replaces it.
  void set_attribute(const std::string& name, const Hdf5Attribute& value, const std::string& object = "/");
  bool has_attribute(const std::string& name, const std::string& object = "/") const;
  std::vector<std::string> attributes(const std::string& object = "/") const;  ///< names, sorted
  /// As stored: any integer is int64, h5py's enum is bool, any float is double, any string UTF-8.
  Hdf5Attribute attribute(const std::string& name, const std::string& object = "/") const;
  /// T: std::int64_t, double (integers convert), bool or std::string. Throws naming both types if it is
  /// another.
  template <class T>
  T attribute(const std::string& name, const std::string& object = "/") const;

  struct Impl;

 private:
  explicit Hdf5File(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace transmamba
