#include "core/durable_rename.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "kernels/check.h"

namespace transmamba {

void sync_to_disk(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  check(fd >= 0, "fsync", "{}: {}", path.string(), std::strerror(errno));
  const int error = ::fsync(fd) == 0 ? 0 : errno;
  ::close(fd);
  // Some file systems cannot sync a folder and need not.
  check(error == 0 || error == EINVAL || error == EROFS, "fsync", "{}: {}", path.string(),
        std::strerror(error));
}

void durable_rename(const std::filesystem::path& from, const std::filesystem::path& to) {
  const bool renamed = std::rename(from.c_str(), to.c_str()) == 0;  // before errno is read
  check(renamed, "rename", "{} to {}: {}", from.string(), to.string(), std::strerror(errno));
  sync_to_disk(to.has_parent_path() ? to.parent_path() : std::filesystem::path("."));
}

}  // namespace transmamba
