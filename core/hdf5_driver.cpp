// The HDF5 file driver that files are written through.
//
// Why not the library's own: when a write fails (disk full) in HDF5 1.10, the dirty metadata stays in its
// cache, the file cannot be closed any more, and the library's exit handler tries again without end or
// crashes. Here the library never sees a failed write. The first failure is recorded in Output::error, which
// the caller asks after each operation; later metadata is kept in memory for the library to read back, later
// raw data is dropped, and so closing always succeeds as far as HDF5 knows.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/hdf5_internal.h"
#if __has_include(<H5FDdevelop.h>)
#include <H5FDdevelop.h>
#endif

namespace transmamba::hdf5 {

Output::Output(const std::filesystem::path& p) : path(p.string()) {
  fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  check(fd >= 0, "hdf5", "{}: cannot be created: {}", path, std::strerror(errno));
}

Output::~Output() {
  if (fd >= 0) ::close(fd);
}

void Output::sync_and_close() {
  if (fd < 0) return;
  if (error.empty() && ::fsync(fd) != 0 && errno != EINVAL && errno != EROFS) error = std::strerror(errno);
  if (::close(std::exchange(fd, -1)) != 0 && error.empty()) error = std::strerror(errno);
}

namespace {

struct File {
  H5FD_t base;  // HDF5's part comes first
  Output* output;
};

Output& output_of(const H5FD_t* file) { return *reinterpret_cast<const File*>(file)->output; }

H5FD_t* open(const char* name, unsigned flags, hid_t access, haddr_t) {
  // The access list carries a pointer to the Output. Only that file is written here: none of its sources.
  const void* info = H5Pget_driver_info(access);
  if (info == nullptr) return nullptr;
  Output* output = nullptr;
  std::memcpy(&output, info, sizeof output);
  if (output->path != name || output->fd < 0) return nullptr;
  if (flags & H5F_ACC_TRUNC) output->end_of_file = output->end_of_allocation = 0;
  auto* file = new File{};
  file->output = output;
  return &file->base;
}

herr_t close(H5FD_t* file) {
  delete reinterpret_cast<File*>(file);
  return 0;
}

herr_t query(const H5FD_t*, unsigned long* flags) {
  *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE |
           H5FD_FEAT_AGGREGATE_SMALLDATA | H5FD_FEAT_DEFAULT_VFD_COMPATIBLE;
  return 0;
}

haddr_t get_eoa(const H5FD_t* file, H5FD_mem_t) { return output_of(file).end_of_allocation; }

herr_t set_eoa(H5FD_t* file, H5FD_mem_t, haddr_t address) {
  output_of(file).end_of_allocation = address;
  return 0;
}

haddr_t get_eof(const H5FD_t* file, H5FD_mem_t) { return output_of(file).end_of_file; }

herr_t read(H5FD_t* file, H5FD_mem_t, hid_t, haddr_t address, std::size_t size, void* buffer) {
  Output& output = output_of(file);
  auto* to = static_cast<char*>(buffer);
  std::size_t done = 0;
  while (done < size) {
    const ssize_t n = ::pread(output.fd, to + done, size - done, static_cast<off_t>(address + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return -1;
    if (n == 0) break;
    done += static_cast<std::size_t>(n);
  }
  std::memset(to + done, 0, size - done);
  for (const auto& [start, bytes] : output.unwritten) {
    const haddr_t begin = std::max(start, address);
    const haddr_t end = std::min<haddr_t>(start + bytes.size(), address + size);
    if (begin < end) std::memcpy(to + (begin - address), bytes.data() + (begin - start), end - begin);
  }
  return 0;
}

herr_t write(H5FD_t* file, H5FD_mem_t kind, hid_t, haddr_t address, std::size_t size, const void* buffer) {
  Output& output = output_of(file);
  const auto* from = static_cast<const char*>(buffer);
  for (std::size_t done = 0; done < size && output.error.empty();) {
    const ssize_t n = ::pwrite(output.fd, from + done, size - done, static_cast<off_t>(address + done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0)
      output.error = n == 0 ? "nothing was written" : std::strerror(errno);
    else
      done += static_cast<std::size_t>(n);
  }
  if (!output.error.empty() && kind != H5FD_MEM_DRAW)
    output.unwritten.emplace_back(address, std::vector<char>(from, from + size));
  output.end_of_file = std::max<haddr_t>(output.end_of_file, address + size);
  return 0;
}

herr_t truncate(H5FD_t* file, hid_t, hbool_t) {
  Output& output = output_of(file);
  if (output.end_of_file == output.end_of_allocation) return 0;
  if (output.error.empty() && ::ftruncate(output.fd, static_cast<off_t>(output.end_of_allocation)) != 0)
    output.error = std::strerror(errno);
  output.end_of_file = output.end_of_allocation;
  return 0;
}

hid_t driver() {
  static const hid_t id = [] {
    static H5FD_class_t c{};
#ifdef H5FD_CLASS_VERSION
    c.version = H5FD_CLASS_VERSION;
    c.value = static_cast<H5FD_class_value_t>(512);  // of the range for drivers outside the library
#endif
    c.name = "transmamba";
    c.maxaddr = (haddr_t{1} << 62) - 1;
    c.fc_degree = H5F_CLOSE_STRONG;
    c.fapl_size = sizeof(Output*);
    c.open = open, c.close = close, c.query = query;
    c.get_eoa = get_eoa, c.set_eoa = set_eoa, c.get_eof = get_eof;
    c.read = read, c.write = write, c.truncate = truncate;
    const H5FD_mem_t map[] = H5FD_FLMAP_DICHOTOMY;
    std::copy(std::begin(map), std::end(map), c.fl_map);
    return H5FDregister(&c);
  }();
  return id;
}

}  // namespace

Handle access_through(const std::shared_ptr<Output>& output) {
  Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  const Output* address = output.get();
  if (!access.valid() || H5Pset_driver(access, driver(), &address) < 0)
    fail("hdf5", "{}: cannot be set up for writing: {}", output->path, innermost_error());
  return access;
}

}  // namespace transmamba::hdf5
