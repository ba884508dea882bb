// One run a folder: two that save there would replace each other's checkpoints.
#pragma once

#include <filesystem>

namespace transmamba {

/// Holds <folder>/lock, whose text says who does. The system lets go of it when the process ends, however it
/// does, on its own host and over NFS. The file stays.
class FolderLock {
 public:
  /// Makes the folder. Throws Error naming host, process and SLURM job of a run that has it, after waiting a
  /// few seconds for its end: it may be this run's own last start. Where the file system has no locks it
  /// warns.
  explicit FolderLock(const std::filesystem::path& folder, double patience_seconds = 3);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int file_ = -1;
};

}  // namespace transmamba
