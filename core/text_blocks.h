// Text files in bounded memory.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace transmamba {

/// A file as blocks of a few megabytes that end at line boundaries. A line longer than a block is cut where
/// `may_cut_lines`, before a space or at least between characters; else the block grows to hold it.
class TextBlocks {
 public:
  /// Throws Error naming the file where it cannot be opened; next() where it cannot be read.
  TextBlocks(const std::filesystem::path& path, bool may_cut_lines);
  ~TextBlocks();
  TextBlocks(const TextBlocks&) = delete;
  TextBlocks& operator=(const TextBlocks&) = delete;

  /// The next block, valid until the next call; empty at the end of the file.
  std::string_view next();

 private:
  std::string_view give(std::size_t size) { return {buffer_.data(), given_ = size}; }
  bool fill();  // false at the end of the file
  std::size_t boundary() const;

  std::filesystem::path path_;
  bool may_cut_lines_;
  int fd_;
  std::string buffer_;
  std::size_t filled_ = 0, given_ = 0;
};

}  // namespace transmamba
