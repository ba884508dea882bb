#include "core/megatron_tokens.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <vector>

namespace transmamba {
namespace {

static_assert(std::endian::native == std::endian::little);

/// A whole file, mapped for reading.
class Mapping {
 public:
  explicit Mapping(const std::filesystem::path& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    check(fd >= 0, "data", "{}: {}", path.string(), std::strerror(errno));
    struct stat status {};
    if (::fstat(fd, &status) == 0 && S_ISREG(status.st_mode)) size_ = status.st_size;
    if (size_ > 0) address_ = ::mmap(nullptr, static_cast<std::size_t>(size_), PROT_READ, MAP_SHARED, fd, 0);
    const int error = errno;
    ::close(fd);
    check(size_ > 0, "data", "{}: empty, or not a file", path.string());
    check(address_ != MAP_FAILED, "data", "{}: cannot be mapped: {}", path.string(), std::strerror(error));
  }
  ~Mapping() { ::munmap(address_, static_cast<std::size_t>(size_)); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  std::int64_t size() const { return size_; }
  const char* at(std::int64_t offset) const { return static_cast<const char*>(address_) + offset; }
  /// Nothing in an .idx is aligned.
  template <class T>
  T load(std::int64_t offset) const {
    T value;
    std::memcpy(&value, at(offset), sizeof value);
    return value;
  }

 private:
  std::int64_t size_ = 0;
  void* address_ = nullptr;
};

int width_of(int code) {
  switch (code) {
    case 1:
    case 2: return 1;
    case 3:
    case 8: return 2;
    case 4: return 4;
    case 5: return 8;
    default: return 0;
  }
}

class MegatronTokens final : public TokenDataset {
 public:
  explicit MegatronTokens(const std::filesystem::path& prefix)
      : index_path_(prefix.string() + ".idx"), index_(index_path_), bin_(prefix.string() + ".bin") {
    path_ = prefix.string() + ".bin";
    check_header();
    check_sequences();
    check_documents();
    check(size_ > 0, "data", "{}: no tokens", path_.string());
  }

 protected:
  void fetch(std::int64_t begin, std::span<std::int32_t> out) const override {
    if (starts_.empty()) return copy(begin * width_, out);
    auto sequence = std::upper_bound(starts_.begin(), starts_.end(), begin) - starts_.begin() - 1;
    while (!out.empty()) {
      const std::int64_t inside = begin - starts_[static_cast<std::size_t>(sequence)];
      const std::int64_t left = length(sequence) - inside;
      const auto take = static_cast<std::size_t>(std::min<std::int64_t>(left, std::ssize(out)));
      copy(pointer(sequence) + inside * width_, out.first(take));
      out = out.subspan(take);
      begin += static_cast<std::int64_t>(take);
      ++sequence;
    }
  }

 private:
  static constexpr std::int64_t kHeader = 9 + 8 + 1 + 8 + 8;

  std::int32_t length(std::int64_t sequence) const {
    return index_.load<std::int32_t>(kHeader + 4 * sequence);
  }
  std::int64_t pointer(std::int64_t sequence) const {
    return index_.load<std::int64_t>(kHeader + 4 * sequences_ + 8 * sequence);
  }
  std::int64_t document(std::int64_t i) const {
    return index_.load<std::int64_t>(kHeader + 12 * sequences_ + 8 * i);
  }

  template <class... Args>
  void must(bool ok, fmt::format_string<Args...> format, Args&&... args) const {
    if (!ok) fail("data", "{}: {}", index_path_.string(), fmt::format(format, std::forward<Args>(args)...));
  }

  void check_header() {
    constexpr char kMagic[] = "MMIDIDX\0";  // and the literal's own NUL: 9 bytes
    must(std::memcmp(index_.at(0), kMagic,
                     std::min<std::size_t>(9, static_cast<std::size_t>(index_.size()))) == 0,
         "not a Megatron index: expected it to begin with MMIDIDX");
    must(index_.size() >= kHeader, "truncated: expected a header of {} bytes, got {}", std::int64_t{kHeader},
         index_.size());
    const auto version = index_.load<std::uint64_t>(9);
    must(version == 1, "expected format version 1, got {}", version);
    code_ = index_.load<std::uint8_t>(17);
    width_ = width_of(code_);
    must(width_ > 0, "expected an integer type (code 1, 2, 3, 4, 5 or 8), got code {}", code_);
    const auto sequences = index_.load<std::uint64_t>(18), documents = index_.load<std::uint64_t>(26);
    const auto room =
        static_cast<std::uint64_t>(index_.size());  // bounds both counts, so that no sum overflows
    must(sequences <= room && documents <= room && kHeader + 12 * sequences + 8 * documents <= room,
         "truncated: {} sequences and {} documents do not fit in {} bytes", sequences, documents,
         index_.size());
    sequences_ = static_cast<std::int64_t>(sequences);
    documents_ = static_cast<std::int64_t>(documents);
    const std::int64_t rest = index_.size() - (kHeader + 12 * sequences_ + 8 * documents_);
    must(rest == 0 || rest == sequences_, "expected it to end after its document index, got {} bytes more",
         rest);
  }

  void check_sequences() {
    bool in_order = true;  // as Megatron writes them: then no table is needed
    for (std::int64_t i = 0; i < sequences_; ++i) {
      const std::int64_t n = length(i), from = pointer(i);
      must(n >= 0, "sequence {}: expected a length >= 0, got {}", i, n);
      if (from < 0 || from > bin_.size() || n * width_ > bin_.size() - from) [[unlikely]]
        must(false, "sequence {}: bytes [{}, {}) lie outside {} of {} bytes", i, from, from + n * width_,
             path_.string(), bin_.size());
      in_order = in_order && from == size_ * width_;
      size_ += n;
    }
    if (in_order) return;
    std::int64_t start = 0;
    for (std::int64_t i = 0; i < sequences_; start += length(i++)) starts_.push_back(start);
  }

  void check_documents() {
    for (std::int64_t i = 0; i < documents_; ++i)
      must(document(i) >= (i ? document(i - 1) : 0) && document(i) <= sequences_,
           "document {}: expected a sequence from {} to {}, got {}", i, i ? document(i - 1) : 0, sequences_,
           document(i));
    num_documents_ = std::max<std::int64_t>(0, documents_ - 1);
  }

  void copy(std::int64_t byte, std::span<std::int32_t> out) const {
    switch (code_) {
      case 1: return convert<std::uint8_t>(byte, out);
      case 2: return convert<std::int8_t>(byte, out);
      case 3: return convert<std::int16_t>(byte, out);
      case 5: return convert<std::int64_t>(byte, out);
      case 8: return convert<std::uint16_t>(byte, out);
      default: std::memcpy(out.data(), bin_.at(byte), out.size_bytes());
    }
  }

  template <class T>
  void convert(std::int64_t byte, std::span<std::int32_t> out) const {
    for (std::size_t i = 0; i < out.size(); ++i) {
      const T token = bin_.load<T>(byte + static_cast<std::int64_t>(i * sizeof(T)));
      if constexpr (sizeof(T) > 4)
        if (token < 0 || token > std::numeric_limits<std::int32_t>::max()) [[unlikely]]
          fail("data", "{}: expected token ids of 31 bits, got {} at byte {}", path_.string(), token,
               byte + static_cast<std::int64_t>(i * sizeof(T)));
      out[i] = static_cast<std::int32_t>(token);
    }
  }

  std::filesystem::path index_path_;
  Mapping index_, bin_;
  int code_ = 0, width_ = 0;
  std::int64_t sequences_ = 0, documents_ = 0;
  std::vector<std::int64_t> starts_;  // of each sequence in the stream; empty when the .bin is the stream
};

}  // namespace

std::unique_ptr<TokenDataset> open_megatron(const std::filesystem::path& prefix) {
  return std::make_unique<MegatronTokens>(prefix);
}

}  // namespace transmamba
