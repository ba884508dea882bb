// Shared by core/hdf5_*.cpp only: handles, the lock, errors and the driver that files are written through.
#pragma once

#include <hdf5.h>

#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/hdf5_file.h"

namespace transmamba::hdf5 {

/// Held during every use of the library, and turns off its own printing (a setting of each thread).
class Lock {
 public:
  Lock();
  /// Between two pieces of long work, unlocked: lets those who wait for the lock have it. A mutex alone would
  /// give it back to whoever has just had it.
  static void let_others();

 private:
  std::unique_lock<std::recursive_mutex> guard_;
};

/// Owns one HDF5 identifier.
class Handle {
 public:
  using Closer = herr_t (*)(hid_t);
  Handle() = default;
  Handle(hid_t id, Closer closer) : id_(id), closer_(closer) {}
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), closer_(other.closer_) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(id_, other.id_), std::swap(closer_, other.closer_);
    return *this;
  }
  ~Handle() { reset(); }
  operator hid_t() const { return id_; }  // NOLINT: it is one
  bool valid() const { return id_ >= 0; }
  void reset() {
    if (id_ >= 0) closer_(std::exchange(id_, -1));
  }

 private:
  hid_t id_ = -1;
  Closer closer_ = nullptr;
};

/// The description that the failed call's deepest function left on HDF5's error stack.
std::string innermost_error();

/// A file being written, seen from outside the library. See hdf5_driver.cpp.
struct Output {
  explicit Output(const std::filesystem::path& path);  ///< creates or empties the file; throws Error
  ~Output();
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;
  void sync_and_close();  ///< records a failure in `error`

  std::string path;
  int fd = -1;
  std::string error;  ///< the first failure in words; empty: none. From then on nothing reaches the disk.
  haddr_t end_of_allocation = 0, end_of_file = 0;
  std::vector<std::pair<haddr_t, std::vector<char>>> unwritten;  ///< metadata written after `error`, in order
};

/// An access list under which H5Fcreate(output->path) writes to `output`. `output` outlives the file.
Handle access_through(const std::shared_ptr<Output>& output);

template <Hdf5Number T>
hid_t native_type();

std::string describe_type(hid_t type);  ///< "float32", "int64", "string", ..

}  // namespace transmamba::hdf5

namespace transmamba {

struct Hdf5File::Impl {
  struct Stream {  // values wait in `buffer` until they fill a chunk
    hdf5::Handle dataset;
    hid_t type;
    std::size_t width;
    std::vector<char> buffer;
    hsize_t length = 0;  // already handed to HDF5
  };

  explicit Impl(std::filesystem::path p) : path(std::move(p)) {}
  ~Impl();

  std::filesystem::path path;
  hdf5::Handle file;
  std::shared_ptr<hdf5::Output> output;  // null for a file that is read
  std::map<std::string, Stream> streams;
  mutable std::string recent_name;  // the dataset read last stays open: its chunk cache and index are warm
  mutable hdf5::Handle recent;
  mutable std::map<std::string, std::set<std::string>>
      sources;                                           // checked files of virtual datasets -> datasets
  mutable std::map<std::string, Hdf5File> open_sources;  // some of them

  [[noreturn]] void raise(std::string_view object, std::string_view what) const;  ///< with innermost_error()
  hdf5::Handle own(hid_t id, hdf5::Handle::Closer closer, std::string_view object,
                   std::string_view what) const;  ///< raises unless id >= 0
  void must(herr_t status, std::string_view object, std::string_view what) const;
  void require_writable(std::string_view object) const;
  void check_written(std::string_view object) const;  ///< throws when the disk refused something

  hid_t dataset(const std::string& name) const;  ///< open until the next call
  hdf5::Handle object(const std::string& name) const;
  void check_sources(hid_t dataset, const std::string& name) const;
  /// Reads a block of a virtual dataset from its sources. False, having read nothing, where it is none or not
  /// made of whole datasets as write_virtual() makes it.
  bool read_pieces(const std::string& name, const Extents& offset, const View& out) const;
  const Hdf5File& source(const std::string& file_name, const std::string& name) const;
  void read(const std::string& name, const Extents* offset, const Extents& extent, hid_t type,
            void* out) const;
  /// Takes the lock itself, again for every piece: training reads its data while a checkpoint is written.
  void write(const std::string& name, const Extents& shape, hid_t type, const void* values);
  hdf5::Handle create_dataset(const std::string& name, hid_t type, hid_t space, hid_t properties);
  void flush(Stream& stream, const std::string& name);
  void finish_streams();
};

}  // namespace transmamba
