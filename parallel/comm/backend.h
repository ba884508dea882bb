// What the implementations of Communicator share: sizes, sums, and how a mismatch of calls is told.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "core/allocator.h"
#include "parallel/comm/communicator.h"

namespace transmamba {

template <class AnyView>
std::size_t bytes_of(const AnyView& view) {  // an absent view has the shape of a scalar
  return view ? static_cast<std::size_t>(view.numel() * size_of(view.dtype())) : 0;
}

/// Memory that is not cleared first.
class Bytes {
 public:
  Bytes() = default;
  explicit Bytes(std::size_t size) : data_(new std::byte[size]), size_(size) {}
  explicit Bytes(const ConstView& copied);
  std::byte* data() const { return data_.get(); }
  std::size_t size() const { return size_; }

 private:
  std::unique_ptr<std::byte[]> data_;
  std::size_t size_ = 0;
};

/// memcpy that also takes nothing from nowhere, and memory onto itself.
void copy_bytes(std::byte* to, const std::byte* from, std::size_t count);

/// total = total (+ or max) x, element by element; all implementations do it here and in the order of ranks,
/// so that their results are equal in every bit.
void reduce_onto(std::byte* total, const std::byte* x, DType dtype, std::int64_t count, Reduce reduce);

/// Whether a call that is no exchange has no elements; so on every rank.
bool is_empty(const Call& call);
/// Whether a call, not empty, is about the GPU's memory. Throws Error where it is about both kinds, and where
/// an exchange is not: a rank with nothing to say in it could not tell. What `memory` owns is the GPU's; of
/// other addresses the driver is asked, which takes a microsecond.
bool is_on_gpu(const Call& call, const Allocator& memory, std::string_view axis);

/// What has to be equal on all ranks of a collective call.
struct Fingerprint {
  std::uint64_t purpose = 0;  ///< hash
  std::int64_t count = 0;     ///< elements
  std::int64_t number = 0;    ///< how many collective calls of the group came before
  std::int32_t peer = 0;
  std::uint8_t kind = 0, dtype = 0, reduce = 0, unused = 0;
  bool operator==(const Fingerprint&) const = default;
};
static_assert(sizeof(Fingerprint) == 32, "no padding: it is sent as bytes");
Fingerprint fingerprint_of(const Call& call, std::int64_t number);

/// "[tp] ranks of one group make different calls: rank 0 is in .., rank 2 in .."
std::string mismatch_text(std::string_view axis, int rank_a, const std::string& call_a, int rank_b,
                          const std::string& call_b);
/// The same for an exchange in which `from` sends other than `to` expects.
std::string exchange_mismatch_text(std::string_view axis, int from, std::int64_t sent_bytes,
                                   const std::string& from_call, int to, std::int64_t expected_bytes,
                                   const std::string& to_call);

}  // namespace transmamba
