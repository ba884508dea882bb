// Which parts of one contiguous range are taken: best fit, with neighbours that are free joined. It only
// counts; what lies behind the range is the allocator's.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <utility>

namespace transmamba {

class Arena {
 public:
  static constexpr std::int64_t kAlign = 256;  ///< of every offset, bytes

  /// Offset of `bytes` > 0 in the smallest free run that has them, the first of several; -1 where none has.
  std::int64_t take(std::int64_t bytes);
  /// `offset` came from take() and was not given back since.
  void give_back(std::int64_t offset);
  /// By how much the range must grow before take(bytes) succeeds at its end; a free run there counts.
  std::int64_t missing(std::int64_t bytes) const;
  void extend(std::int64_t bytes);  ///< a multiple of kAlign

  std::int64_t size() const { return size_; }
  std::int64_t taken() const { return taken_bytes_; }
  /// Of which runs are taken: equal for equal sets, whatever happened before.
  std::uint64_t fingerprint() const;

 private:
  void add_free(std::int64_t offset, std::int64_t bytes);
  void remove_free(std::map<std::int64_t, std::int64_t>::iterator run);
  std::map<std::int64_t, std::int64_t> free_;                     // offset -> bytes; none touch
  std::set<std::pair<std::int64_t, std::int64_t>> free_by_size_;  // (bytes, offset)
  std::map<std::int64_t, std::int64_t> taken_;                    // offset -> bytes
  std::int64_t size_ = 0, taken_bytes_ = 0;
};

}  // namespace transmamba
