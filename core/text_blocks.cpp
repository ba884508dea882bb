#include "core/text_blocks.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "kernels/check.h"

namespace transmamba {
namespace {

constexpr std::size_t kBlock = std::size_t{4} << 20;  // bytes read at once

}  // namespace

TextBlocks::TextBlocks(const std::filesystem::path& path, bool may_cut_lines)
    : path_(path), may_cut_lines_(may_cut_lines), fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
  if (fd_ < 0) fail("text", "{}: {}", path.string(), std::strerror(errno));
  buffer_.resize(kBlock);
}

TextBlocks::~TextBlocks() { ::close(fd_); }

std::string_view TextBlocks::next() {
  std::memmove(buffer_.data(), buffer_.data() + given_, filled_ - given_);
  filled_ -= given_;
  for (given_ = 0;;) {
    const bool end = !fill();
    if (end) return give(filled_);
    const std::size_t newline = std::string_view(buffer_.data(), filled_).rfind('\n');
    if (newline != std::string_view::npos) return give(newline + 1);
    if (may_cut_lines_) return give(boundary());
    buffer_.resize(2 * buffer_.size());
  }
}

bool TextBlocks::fill() {
  while (filled_ < buffer_.size()) {
    const ssize_t n = ::read(fd_, buffer_.data() + filled_, buffer_.size() - filled_);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("text", "{}: cannot be read: {}", path_.string(), std::strerror(errno));
    if (n == 0) return false;
    filled_ += static_cast<std::size_t>(n);
  }
  return true;
}

std::size_t TextBlocks::boundary() const {
  const std::string_view text(buffer_.data(), filled_);
  const std::size_t space = text.rfind(' ');
  if (space != std::string_view::npos && space > filled_ / 2) return space;
  std::size_t at = filled_ - 1;
  while (at > filled_ - 4 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

}  // namespace transmamba
