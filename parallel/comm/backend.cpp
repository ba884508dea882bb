#include "parallel/comm/backend.h"

#include <algorithm>
#include <cstring>

#include "kernels/device.h"

namespace transmamba {
namespace {

template <class T>
void reduce_typed(T* total, const T* x, std::int64_t count, Reduce reduce) {
  if (reduce == Reduce::max) {
    // A NaN must not get lost in a maximum: it is how a run finds out that its numbers are broken.
    for (std::int64_t i = 0; i < count; ++i) total[i] = x[i] > total[i] || x[i] != x[i] ? x[i] : total[i];
  } else if constexpr (std::is_integral_v<T>) {
    for (std::int64_t i = 0; i < count; ++i)  // wraps, which signed addition must not
      total[i] = static_cast<T>(static_cast<std::uint32_t>(total[i]) + static_cast<std::uint32_t>(x[i]));
  } else {
    for (std::int64_t i = 0; i < count; ++i) total[i] += x[i];
  }
}

}  // namespace

Bytes::Bytes(const ConstView& copied) : Bytes(bytes_of(copied)) { copy_bytes(data(), copied.raw(), size()); }

void copy_bytes(std::byte* to, const std::byte* from, std::size_t count) {
  if (count > 0 && to != from) std::memmove(to, from, count);
}

void reduce_onto(std::byte* total, const std::byte* x, DType dtype, std::int64_t count, Reduce reduce) {
  const auto typed = [&]<class T>(T) {
    reduce_typed(reinterpret_cast<T*>(total), reinterpret_cast<const T*>(x), count, reduce);
  };
  switch (dtype) {
    case DType::f32: return typed(float{});
    case DType::f64: return typed(double{});
    case DType::i32: return typed(std::int32_t{});
    case DType::bf16: break;
  }
  fail("communicator", "reduction of {}: expected float32, float64 or int32", dtype);
}

bool is_empty(const Call& call) {
  if (call.kind == Call::Kind::barrier || call.kind == Call::Kind::exchange) return false;
  return (call.kind == Call::Kind::send ? call.in : ConstView(call.out)).numel() == 0;
}

bool is_on_gpu(const Call& call, const Allocator& memory, std::string_view axis) {
  const auto on_gpu = [&](const ConstView& x) {
    return x && (memory.owns(x.raw()) || gpu::has_address(x.raw()));
  };
  const auto all = [&](const auto& messages) {
    return std::all_of(messages.begin(), messages.end(), [&](const auto& m) { return on_gpu(m.data); });
  };
  switch (call.kind) {
    case Call::Kind::barrier: return false;
    case Call::Kind::send: return on_gpu(call.in);
    case Call::Kind::receive: return on_gpu(call.out);
    case Call::Kind::exchange:
      check(all(call.outgoing) && all(call.incoming), axis, "{}: expected GPU memory, got the host's",
            to_string(call));
      return true;
    default: break;
  }
  const bool out = on_gpu(call.out);
  check(call.in.raw() == call.out.raw() || on_gpu(call.in) == out, axis,
        "{}: expected memory of one kind, got GPU and host", to_string(call));
  return out;
}

Fingerprint fingerprint_of(const Call& call, std::int64_t number) {
  Fingerprint result;
  result.purpose = 0xcbf29ce484222325;  // FNV-1a: the same in every build, as std::hash need not be
  for (const char c : call.purpose)
    result.purpose = (result.purpose ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  result.number = number;
  result.kind = static_cast<std::uint8_t>(call.kind);
  if (call.kind == Call::Kind::exchange || call.kind == Call::Kind::barrier) return result;
  // Of all_gather and reduce_scatter `mine` is counted; the whole follows from it.
  const bool from_output = call.kind != Call::Kind::all_gather && call.kind != Call::Kind::send;
  result.count = from_output ? call.out.numel() : call.in.numel();
  result.dtype = static_cast<std::uint8_t>(from_output ? call.out.dtype() : call.in.dtype());
  if (call.kind == Call::Kind::broadcast) result.peer = call.peer;
  if (call.kind == Call::Kind::all_reduce) result.reduce = static_cast<std::uint8_t>(call.reduce);
  return result;
}

std::string mismatch_text(std::string_view axis, int rank_a, const std::string& call_a, int rank_b,
                          const std::string& call_b) {
  if (rank_a > rank_b) return mismatch_text(axis, rank_b, call_b, rank_a, call_a);
  return fmt::format(
      "[{}] the ranks of a group make different calls: expected the same everywhere, got on rank {} {}, and "
      "on "
      "rank {} {}",
      axis, rank_a, call_a, rank_b, call_b);
}

std::string exchange_mismatch_text(std::string_view axis, int from, std::int64_t sent_bytes,
                                   const std::string& from_call, int to, std::int64_t expected_bytes,
                                   const std::string& to_call) {
  return fmt::format(
      "[{}] the two sides of an exchange differ: rank {} sends {} bytes to rank {} in {}, which expects {} "
      "bytes "
      "in {}",
      axis, from, sent_bytes, to, from_call, expected_bytes, to_call);
}

}  // namespace transmamba
