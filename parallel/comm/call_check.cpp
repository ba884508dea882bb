#include "parallel/comm/call_check.h"

#include <functional>

#include "parallel/comm/backend.h"

namespace transmamba {
namespace {

using Kind = Call::Kind;

bool overlap(const ConstView& a, const ConstView& b) {
  const std::less<const std::byte*> before;
  return bytes_of(a) > 0 && bytes_of(b) > 0 && before(a.raw(), b.raw() + bytes_of(b)) &&
         before(b.raw(), a.raw() + bytes_of(a));
}

/// The arguments of one call, checked; messages begin with the group's name and end with the call.
struct Checker {
  const Call& call;
  const std::string& axis;
  int rank, size;
  bool takes_bf16;

  template <class... Args>
  void expect(bool ok, fmt::format_string<Args...> format, Args&&... args) const {
    if (!ok) fail(axis, "{}: {}", to_string(call), fmt::format(format, std::forward<Args>(args)...));
  }
  void buffer(const ConstView& x, std::string_view name) const {
    expect(x.raw() != nullptr || x.numel() == 0, "{} is absent", name);
    expect(x.contiguous(), "{}: expected a contiguous view, got strides {} for {}", name, x.strides(),
           x.shape());
    const bool stays = size == 1 && call.kind == Kind::all_gather;
    expect(stays || takes_bf16 || x.dtype() != DType::bf16, "{}: expected float32, float64 or int32, got {}",
           name, x.dtype());
  }
  void peer(std::string_view name, int peer) const {
    expect(0 <= peer && peer < size, "{}: expected a rank in [0, {}), got {}", name, size, peer);
  }
  void parts(const ConstView& all, const ConstView& mine) const {
    buffer(all, "all"), buffer(mine, "mine");
    expect(all.dtype() == mine.dtype(), "expected one type, got all of {} and mine of {}", all.dtype(),
           mine.dtype());
    expect(all.numel() == size * mine.numel(),
           "expected all to have {} times the elements of mine, got {} and {}", size, all.numel(),
           mine.numel());
    expect(mine.raw() == all.raw() + static_cast<std::size_t>(rank) * bytes_of(mine) || !overlap(all, mine),
           "mine lies in all, but is not part {} of it", rank);
  }
  template <class Messages>
  void messages(const Messages& list, std::string_view name) const {
    std::vector<bool> seen(static_cast<std::size_t>(size), false);
    for (const auto& message : list) {
      peer(name, message.peer), buffer(message.data, name);
      expect(!seen[static_cast<std::size_t>(message.peer)], "{}: expected one message a rank, got two of {}",
             name, message.peer);
      seen[static_cast<std::size_t>(message.peer)] = true;
    }
  }

  void run() const {
    switch (call.kind) {
      case Kind::all_reduce: return buffer(call.out, "x");
      case Kind::all_gather: return parts(call.out, call.in);
      case Kind::reduce_scatter: return parts(call.in, call.out);
      case Kind::broadcast: return buffer(call.out, "x"), peer("root", call.peer);
      case Kind::exchange: return messages(call.outgoing, "outgoing"), messages(call.incoming, "incoming");
      case Kind::send: buffer(call.in, "data"); break;
      case Kind::receive: buffer(call.out, "data"); break;
      case Kind::barrier: return;
    }
    peer("peer", call.peer);
    expect(0 <= call.tag && call.tag < Communicator::kMaxTag, "tag: expected one in [0, {}), got {}",
           Communicator::kMaxTag, call.tag);
  }
};

}  // namespace

void check_call(const Call& call, const std::string& axis, int rank, int size, bool takes_bf16) {
  Checker{call, axis, rank, size, takes_bf16}.run();
}

const char* to_string(Call::Kind kind) {
  constexpr const char* kNames[] = {"all_reduce", "all_gather", "reduce_scatter", "broadcast",
                                    "exchange",   "send",       "receive",        "barrier"};
  return kNames[static_cast<std::size_t>(kind)];
}

std::string to_string(const Call& call) {
  std::string text = to_string(call.kind);
  const auto size = [](const ConstView& x) {
    return fmt::format(" of {} bytes ({} {})", bytes_of(x), x.numel(), x.dtype());
  };
  switch (call.kind) {
    case Kind::all_reduce: text += size(call.out) + (call.reduce == Reduce::max ? " with max" : ""); break;
    case Kind::all_gather: text += size(call.in); break;
    case Kind::reduce_scatter: text += size(call.out); break;
    case Kind::broadcast: text += size(call.out) + fmt::format(" from rank {}", call.peer); break;
    case Kind::send:
      text += size(call.in) + fmt::format(" to rank {} with tag {}", call.peer, call.tag);
      break;
    case Kind::receive:
      text += size(call.out) + fmt::format(" from rank {} with tag {}", call.peer, call.tag);
      break;
    case Kind::exchange:
    case Kind::barrier: break;
  }
  return text + fmt::format(" for {} at {}:{}", call.purpose, call.where.file, call.where.line);
}

}  // namespace transmamba
