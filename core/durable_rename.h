// The last step of writing a file (or folder) so that a crash leaves the old one or the new one, never half.
#pragma once

#include <filesystem>
#include <string>

namespace transmamba {

/// Renames `from`, whose contents are on disk already (Hdf5File::close sees to that), to `to`, replacing a
/// file there, and makes the rename itself survive a power failure. Both lie in the same file system. Throws
/// Error.
void durable_rename(const std::filesystem::path& from, const std::filesystem::path& to);

/// A whole file, written beside `path` and renamed to it. Throws Error.
void write_durably(const std::filesystem::path& path, const std::string& text);

/// Throws Error where that would not begin well.
void check_writable(const std::filesystem::path& path);

/// fsync of a file or folder that is there. Throws Error.
void sync_to_disk(const std::filesystem::path& path);

}  // namespace transmamba
