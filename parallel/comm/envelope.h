// What goes ahead of every message between processes: which call it is of, so that calls that do not fit are
// noticed, and the message itself where it is short.
#pragma once

#include <string>
#include <vector>

#include "parallel/comm/backend.h"

namespace transmamba {

/// One side's view of a call, packed: a header, purpose and file, of an exchange a table of its sizes, and up
/// to kAttached bytes of data. Packing copies and formats nothing; text is made only when something is wrong.
class Envelope {
 public:
  static constexpr std::size_t kAttached = 2048;
  /// Enough for any envelope in a group of `size` ranks.
  static std::size_t capacity(int size);

  /// `table` is of an exchange: bytes to each rank, then bytes from each rank.
  static std::size_t pack(std::byte* buffer, const Call& call, std::int64_t number,
                          const std::vector<std::int64_t>& table, const std::byte* data, std::size_t bytes);

  explicit Envelope(const std::byte* packed);
  const Fingerprint& fingerprint() const { return header_.fingerprint; }
  std::size_t bytes() const { return static_cast<std::size_t>(header_.bytes); }
  const std::byte* attached() const { return packed_ + header_.data; }
  std::int64_t table(int i) const;
  std::string call() const;  ///< as to_string(Call) on the rank that packed it

 private:
  struct Header {
    Fingerprint fingerprint;
    std::int64_t bytes = 0;  // to this receiver, attached or not
    std::int32_t line = 0, peer = 0, tag = 0;
    std::uint32_t purpose = 0, file = 0, table = 0, data = 0;  // lengths of two texts, places of two arrays
  };
  const std::byte* packed_;
  Header header_;
};

}  // namespace transmamba
