#include "core/durable_rename.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <system_error>

#include "kernels/check.h"

namespace transmamba {
namespace {

std::filesystem::path aside(const std::filesystem::path& path) { return path.string() + ".part"; }

std::FILE* open_aside(const std::filesystem::path& path) {
  std::FILE* const file = std::fopen(aside(path).c_str(), "w");
  check(file != nullptr, "write", "{}: cannot write: {}", path.string(), std::strerror(errno));
  return file;
}

}  // namespace

void sync_to_disk(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  check(fd >= 0, "fsync", "{}: {}", path.string(), std::strerror(errno));
  const int error = ::fsync(fd) == 0 ? 0 : errno;
  ::close(fd);
  // Some file systems cannot sync a folder and need not.
  check(error == 0 || error == EINVAL || error == EROFS, "fsync", "{}: {}", path.string(),
        std::strerror(error));
}

void check_writable(const std::filesystem::path& path) {
  check(!std::filesystem::is_directory(path), "write", "{}: expected a file, got a folder", path.string());
  std::fclose(open_aside(path));
  std::filesystem::remove(aside(path));
}

void write_durably(const std::filesystem::path& path, const std::string& text) {
  std::FILE* const file = open_aside(path);
  const bool is_written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
  const bool is_closed = std::fclose(file) == 0;
  const int why = errno;
  if (!is_written || !is_closed) {  // on a full disk what is there of it is in the way
    std::error_code ignored;
    std::filesystem::remove(aside(path), ignored);
    fail("write", "{}: cannot write: {}", path.string(), std::strerror(why));
  }
  sync_to_disk(aside(path));
  durable_rename(aside(path), path);
}

void durable_rename(const std::filesystem::path& from, const std::filesystem::path& to) {
  const bool renamed = std::rename(from.c_str(), to.c_str()) == 0;  // before errno is read
  check(renamed, "rename", "{} to {}: {}", from.string(), to.string(), std::strerror(errno));
  sync_to_disk(to.has_parent_path() ? to.parent_path() : std::filesystem::path("."));
}

}  // namespace transmamba
