// Opening, closing, looking around and errors. Reading and writing of datasets: hdf5_datasets.cpp.
#include "core/hdf5_file.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <system_error>
#include <thread>

#include "core/hdf5_internal.h"

namespace transmamba {
namespace hdf5 {

namespace {
std::recursive_mutex& library_mutex() {
  static auto* mutex = new std::recursive_mutex;  // never destroyed: files may be closed during exit
  return *mutex;
}
}  // namespace

namespace {
std::atomic<int> waiting = 0;
}

Lock::Lock() : guard_(library_mutex(), std::defer_lock) {
  ++waiting;
  guard_.lock();
  --waiting;
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

/// Not for ever: others may be waiting for a lock that this thread still holds further out.
void Lock::let_others() {
  for (int i = 0; i < 20 && waiting > 0; ++i) std::this_thread::sleep_for(std::chrono::microseconds(20));
}

std::string innermost_error() {
  std::string text;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned, const H5E_error2_t* e, void* out) -> herr_t {
        if (e->desc != nullptr) *static_cast<std::string*>(out) = e->desc;
        return 1;  // the first is the innermost
      },
      &text);
  return text.empty() ? "HDF5 gives no reason" : text;
}

std::string describe_type(hid_t type) {
  const std::size_t bits = 8 * H5Tget_size(type);
  switch (H5Tget_class(type)) {
    case H5T_INTEGER: return fmt::format("{}int{}", H5Tget_sign(type) == H5T_SGN_NONE ? "u" : "", bits);
    case H5T_FLOAT: return fmt::format("float{}", bits);
    case H5T_STRING: return "string";
    case H5T_ENUM: return H5Tget_nmembers(type) == 2 ? "bool" : "enum";
    case H5T_COMPOUND: return "compound";
    case H5T_VLEN: return "variable-length list";
    default: return "another type";
  }
}

}  // namespace hdf5

using hdf5::Handle;
using hdf5::Lock;

void Hdf5File::Impl::raise(std::string_view object, std::string_view what) const {
  const std::string reason = hdf5::innermost_error();
  const std::string where = object.empty() ? path.string() : fmt::format("{}: {}", path.string(), object);
  if (output && !output->error.empty()) fail("hdf5", "{}: cannot be written: {}", where, output->error);
  fail("hdf5", "{}: {}: {}", where, what, reason);
}

Handle Hdf5File::Impl::own(hid_t id, Handle::Closer closer, std::string_view object,
                           std::string_view what) const {
  if (id < 0) raise(object, what);
  return Handle(id, closer);
}

void Hdf5File::Impl::must(herr_t status, std::string_view object, std::string_view what) const {
  if (status < 0) raise(object, what);
}

void Hdf5File::Impl::require_writable(std::string_view object) const {
  check(file.valid(), "hdf5", "{}: {}: the file is closed", path.string(), object);
  check(output != nullptr, "hdf5", "{}: {}: the file was opened for reading only", path.string(), object);
  check_written(object);
}

void Hdf5File::Impl::check_written(std::string_view object) const {
  if (output)
    check(output->error.empty(), "hdf5", "{}: {}: cannot be written: {}", path.string(), object,
          output->error);
}

Hdf5File::Impl::~Impl() {
  const Lock lock;
  recent.reset();
  streams.clear();
  // `output` must outlive the library's use of it. Closing cannot fail by way of our driver; should it
  // fail otherwise, keeping the record for ever is better than a dangling pointer at exit.
  const hid_t id = file;
  file.reset();
  if (output && id >= 0 && H5Iis_valid(id) > 0) new std::shared_ptr<hdf5::Output>(output);
}

namespace {

// Alternatives to HDF5's defaults that all our files share.
Handle reading_access() {
  Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
#if H5_VERSION_GE(1, 10, 7)
  // Finished files are never written again, and some cluster file systems have no locks.
  H5Pset_file_locking(access, false, true);
#endif
  return access;
}

bool starts_like_hdf5(const std::filesystem::path& path) {
  const Lock lock;
  return H5Fis_hdf5(path.c_str()) > 0;
}

}  // namespace

Hdf5File::Hdf5File(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Hdf5File::Hdf5File(Hdf5File&&) noexcept = default;
Hdf5File& Hdf5File::operator=(Hdf5File&&) noexcept = default;
Hdf5File::~Hdf5File() = default;

Hdf5File Hdf5File::open(const std::filesystem::path& path) {
  const Lock lock;
  const std::string name = path.string();
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  check(std::filesystem::exists(status), "hdf5", "{}: no such file", name);
  check(std::filesystem::is_regular_file(status), "hdf5", "{}: expected an HDF5 file, got a folder or device",
        name);
  const bool readable = ::access(path.c_str(), R_OK) == 0;  // before errno is read
  check(readable, "hdf5", "{}: cannot be read: {}", name, std::strerror(errno));
  check(std::filesystem::file_size(path, error) > 0, "hdf5", "{}: truncated: the file is empty", name);
  check(starts_like_hdf5(path), "hdf5", "{}: not an HDF5 file (its first bytes are others)", name);

  auto impl = std::make_unique<Impl>(path);
  const Handle access = reading_access();  // outlives the call: closing it would clear the error
  impl->file = Handle(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access), H5Fclose);
  if (!impl->file.valid()) {
    const std::string reason = hdf5::innermost_error();
    constexpr std::uintmax_t kSuperblock = 48;
    const bool cut = std::filesystem::file_size(path, error) < kSuperblock ||
                     reason.find("truncated") != std::string::npos ||
                     reason.find("eof") != std::string::npos || reason.find("EOF") != std::string::npos ||
                     reason.find("addr overflow") != std::string::npos;
    const bool unfinished = reason.find("already open for write") != std::string::npos;
    fail("hdf5", "{}: {}: {}", name,
         cut          ? "truncated"
         : unfinished ? "unfinished, its writer stopped before closing it"
                      : "damaged",
         reason);
  }
  return Hdf5File(std::move(impl));
}

Hdf5File Hdf5File::create(const std::filesystem::path& path) {
  const Lock lock;
  auto impl = std::make_unique<Impl>(path);
  impl->output = std::make_shared<hdf5::Output>(path);
  const Handle access = hdf5::access_through(impl->output);
  // The newest format that 1.10 reads: its metadata has checksums.
  impl->must(H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110), "", "cannot be created");
  const Handle creation(H5Pcreate(H5P_FILE_CREATE), H5Pclose);
  impl->must(H5Pset_obj_track_times(creation, false), "", "cannot be created");  // same run, same bytes
  impl->file = impl->own(H5Fcreate(impl->output->path.c_str(), H5F_ACC_TRUNC, creation, access), H5Fclose, "",
                         "cannot be created");
  return Hdf5File(std::move(impl));
}

void Hdf5File::close() {
  if (!impl_) return;
  herr_t status = 0;
  std::string reason;
  {
    const Lock lock;
    if (!impl_->file.valid()) return;
    if (impl_->output && impl_->output->error.empty()) impl_->finish_streams();
    impl_->recent.reset();
    impl_->streams.clear();
    if (impl_->output) status = H5Fflush(impl_->file, H5F_SCOPE_GLOBAL);
    if (status < 0) reason = hdf5::innermost_error();
    impl_->file.reset();
  }
  if (!impl_->output) return;
  impl_->output->sync_and_close();  // may take seconds, in which others use the library
  impl_->check_written("closing");
  check(status >= 0, "hdf5", "{}: cannot be written: {}", impl_->path.string(), reason);
}

const std::filesystem::path& Hdf5File::path() const { return impl_->path; }

// ---- what is there

bool Hdf5File::has(const std::string& name) const {
  const Lock lock;
  std::size_t end = 0;
  // H5Lexists wants every group on the way to exist.
  while (end != std::string::npos) {
    end = name.find('/', end + 1);
    const std::string head = name.substr(0, end);
    if (head.empty() || head == "/") continue;
    if (H5Lexists(impl_->file, head.c_str(), H5P_DEFAULT) <= 0 ||
        H5Oexists_by_name(impl_->file, head.c_str(), H5P_DEFAULT) <= 0)
      return false;
  }
  return true;
}

namespace {

/// Names of a group's links. Not by index: on a damaged group HDF5 1.10 then frees what it never allocated.
std::vector<std::string> links_of(const Hdf5File::Impl& impl, hid_t group, const std::string& prefix) {
  std::vector<std::string> names;
  const auto add = [](hid_t, const char* name, const auto*, void* to) -> herr_t {
    static_cast<std::vector<std::string>*>(to)->emplace_back(name);
    return 0;
  };
  impl.must(H5Literate(group, H5_INDEX_NAME, H5_ITER_NATIVE, nullptr, add, &names), prefix,
            "cannot be listed");
  return names;
}

void collect(const Hdf5File::Impl& impl, hid_t group, const std::string& prefix, int depth,
             std::vector<std::string>& names) {
  check(depth < 64, "hdf5", "{}: {}: groups nested deeper than 64", impl.path.string(), prefix);
  for (const std::string& name : links_of(impl, group, prefix)) {
    if (H5Oexists_by_name(group, name.c_str(), H5P_DEFAULT) <= 0) continue;  // a link to nothing
    const std::string full = prefix.empty() ? name : prefix + "/" + name;
    const Handle child =
        impl.own(H5Oopen(group, name.c_str(), H5P_DEFAULT), H5Oclose, full, "cannot be opened");
    const H5I_type_t type = H5Iget_type(child);
    if (type == H5I_DATASET) names.push_back(full);
    if (type == H5I_GROUP) collect(impl, child, full, depth + 1, names);
  }
}

}  // namespace

std::vector<std::string> Hdf5File::datasets(const std::string& group) const {
  const Lock lock;
  const Handle root = impl_->object(group);
  check(H5Iget_type(root) != H5I_DATASET, "hdf5", "{}: {}: expected a group, got a dataset",
        impl_->path.string(), group);
  std::string prefix = group;
  while (!prefix.empty() && prefix.back() == '/') prefix.pop_back();
  while (!prefix.empty() && prefix.front() == '/') prefix.erase(0, 1);
  std::vector<std::string> names;
  collect(*impl_, root, prefix, 0, names);
  std::sort(names.begin(), names.end());
  return names;
}

Handle Hdf5File::Impl::object(const std::string& name) const {
  check(file.valid(), "hdf5", "{}: {}: the file is closed", path.string(), name);
  const std::string full = name.empty() ? "/" : name;
  return own(H5Oopen(file, full.c_str(), H5P_DEFAULT), H5Oclose, full, "cannot be opened");
}

hid_t Hdf5File::Impl::dataset(const std::string& name) const {
  check(file.valid(), "hdf5", "{}: {}: the file is closed", path.string(), name);
  if (recent.valid() && recent_name == name) return recent;
  recent = Handle();
  recent = own(H5Dopen2(file, name.c_str(), H5P_DEFAULT), H5Dclose, name, "no such dataset");
  recent_name = name;
  return recent;
}

Hdf5File::Extents Hdf5File::shape(const std::string& name) const {
  const Lock lock;
  const Handle space =
      impl_->own(H5Dget_space(impl_->dataset(name)), H5Sclose, name, "its shape cannot be read");
  std::vector<hsize_t> extent(static_cast<std::size_t>(std::max(0, H5Sget_simple_extent_ndims(space))));
  impl_->must(H5Sget_simple_extent_dims(space, extent.data(), nullptr), name, "its shape cannot be read");
  return {extent.begin(), extent.end()};
}

std::string Hdf5File::element_type(const std::string& name) const {
  const Lock lock;
  return hdf5::describe_type(
      impl_->own(H5Dget_type(impl_->dataset(name)), H5Tclose, name, "its type cannot be read"));
}

}  // namespace transmamba
