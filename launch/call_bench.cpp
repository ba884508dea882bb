#include "launch/call_bench.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "kernels/elementwise.h"
#include "launch/measure.h"
#include "parallel/comm/agree.h"
#include "parallel/comm/timed_call.h"

namespace transmamba {
namespace {

using Kind = Call::Kind;

/// Of numbers that are compared; prime, so that no part of a buffer begins where they begin again.
constexpr std::int64_t kPeriod = 1000003;

/// Integers below `below` that look random, so that a part in another's place does not go unnoticed.
std::int64_t number(std::int64_t seed, std::int64_t i, std::int64_t below) {
  auto bits = static_cast<std::uint64_t>(seed) * 0x9e3779b97f4a7c15 + static_cast<std::uint64_t>(i);
  bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9;
  bits = (bits ^ bits >> 27) * 0x94d049bb133111eb;
  return static_cast<std::int64_t>((bits >> 40) % static_cast<std::uint64_t>(below));
}

/// Calls f(x, i) with each element of a host tensor, of the C++ type that it has.
template <class F>
void each(const Tensor& x, F&& f) {
  const auto typed = [&]<class T>(T* p) {
    for (std::int64_t i = 0; i < x.numel(); ++i) f(p[i], i);
  };
  switch (x.dtype()) {
    case DType::f32: return typed(x.ptr<float>());
    case DType::f64: return typed(x.ptr<double>());
    case DType::bf16: return typed(x.ptr<bfloat16>());
    case DType::i32: return typed(x.ptr<std::int32_t>());
  }
}
void set(bfloat16& to, double value) { to = to_bfloat16(static_cast<float>(value)); }
template <class T>
void set(T& to, double value) {
  to = static_cast<T>(value);
}
double value_of(bfloat16 x) { return to_float(x); }
template <class T>
double value_of(T x) {
  return static_cast<double>(x);
}

}  // namespace

double ring_steps(Kind kind, int ranks) {
  const double others = ranks - 1;
  switch (kind) {
    case Kind::all_reduce: return 2 * others;
    case Kind::all_gather:
    case Kind::reduce_scatter:
    case Kind::broadcast: return others;
    default: return 1;
  }
}

double buffer_factor(Kind kind, int ranks) {
  const double moved = kind == Kind::exchange ? static_cast<double>(ranks - 1) / ranks : 1;
  return moved * bus_factor(kind, ranks);
}

/// A call as the library would make it: a message round the ring is an exchange.
struct CallBench::Prepared {
  Kind kind = Kind::barrier;
  View x, y;
  std::vector<Outgoing> outgoing;
  std::vector<Incoming> incoming;
  Call bare;
};

CallBench::CallBench(const Context& context, Communicator& group, Communicator& everyone, const Tensor& x,
                     const Tensor& y, bool by_copies)
    : context_(context), group_(group), everyone_(everyone), x_(x), y_(y), bare_(group.bare()) {
  const std::int64_t bytes = by_copies ? x.numel() * size_of(x.dtype()) : 0;
  const Lane ring{"bench", 1, bytes};
  group_.open_lanes({&ring, 1});
}

std::int64_t CallBench::fitting(std::int64_t bytes) const {
  const std::int64_t grain = size_of(context_.dtype) * group_.size();
  return std::max<std::int64_t>(1, (bytes + grain - 1) / grain) * grain;
}

CallBench::Prepared CallBench::prepare(Kind kind, std::int64_t bytes) const {
  const std::int64_t count = bytes / size_of(context_.dtype), n = group_.size();
  check(bytes == fitting(bytes) && count <= x_.numel(), "bench",
        "bytes: expected a multiple of {} and at most {}, got {}", fitting(1),
        x_.numel() * size_of(context_.dtype), bytes);
  const int me = group_.rank(), ranks = group_.size();
  Prepared p;
  p.kind = p.bare.kind = kind, p.bare.purpose = "bench";
  p.x = x_.view().slice(0, 0, count), p.y = y_.view().slice(0, 0, count);
  p.bare.in = p.x, p.bare.out = p.x;
  const auto part = [&](const View& whole, int rank) {
    return whole.slice(0, rank * (count / n), (rank + 1) * (count / n));
  };
  switch (kind) {
    case Kind::all_gather: p.bare.in = part(p.x, me); break;
    case Kind::reduce_scatter: p.bare.out = part(p.y, me); break;
    case Kind::exchange:
      for (int peer = 0; peer < ranks; ++peer)
        if (peer != me)
          p.outgoing.push_back({peer, part(p.x, peer)}), p.incoming.push_back({peer, part(p.y, peer)});
      break;
    case Kind::send:
      p.outgoing.push_back({(me + 1) % ranks, p.x}), p.incoming.push_back({(me + ranks - 1) % ranks, p.y});
      p.bare.kind = Kind::exchange;
      break;
    default: break;
  }
  return p;
}

void CallBench::make(const Prepared& p) const {
  switch (p.kind) {
    case Kind::all_reduce: return group_.all_reduce("bench", p.bare.out);
    case Kind::all_gather: return group_.all_gather("bench", p.bare.in, p.bare.out);
    case Kind::reduce_scatter: return group_.reduce_scatter("bench", p.x, p.bare.out);
    case Kind::broadcast: return group_.broadcast("bench", p.bare.out, 0);
    case Kind::exchange: return group_.exchange("bench", p.outgoing, p.incoming);
    default: break;
  }
  Pending going = group_.start_send("bench", p.x, p.outgoing[0].peer, 0);
  Pending coming = group_.start_receive("bench", p.y, p.incoming[0].peer, 0);
  coming.wait(), going.wait();
}

/// What the sums of a call's ranks are, too: bfloat16 holds the integers up to 256.
Tensor CallBench::pattern(std::int64_t length, const std::vector<std::int64_t>& seeds) const {
  const Tensor host = context_.empty_host({length}, context_.dtype);
  const std::int64_t below = std::clamp<std::int64_t>(256 / group_.size(), 2, 8);
  each(host, [&](auto& to, std::int64_t i) {
    std::int64_t sum = 0;
    for (const std::int64_t seed : seeds) sum += number(seed, i, below);
    set(to, static_cast<double>(sum));
  });
  return host;
}

void CallBench::write(const View& to, std::int64_t seed) const {
  const Tensor host = pattern(std::min(kPeriod, to.numel()), {seed});
  for (std::int64_t at = 0; at < to.numel(); at += kPeriod) {
    const std::int64_t length = std::min(kPeriod, to.numel() - at);
    from_host(context_, host.slice(0, 0, length), to.slice(0, at, at + length));
  }
}

void CallBench::expect(const View& got, const std::vector<std::int64_t>& seeds,
                       const std::string& what) const {
  const Tensor wanted = pattern(std::min(kPeriod, got.numel()), seeds);
  for (std::int64_t at = 0; at < got.numel(); at += kPeriod) {
    const std::int64_t length = std::min(kPeriod, got.numel() - at);
    const Tensor there = to_host(context_, got.slice(0, at, at + length));
    const auto bytes = static_cast<std::size_t>(length * size_of(there.dtype()));
    if (std::memcmp(there.view().raw(), wanted.view().raw(), bytes) == 0) continue;
    std::vector<double> values(static_cast<std::size_t>(length));
    each(there, [&](auto x, std::int64_t i) { values[static_cast<std::size_t>(i)] = value_of(x); });
    each(wanted.slice(0, 0, length), [&](auto x, std::int64_t i) {
      check(values[static_cast<std::size_t>(i)] == value_of(x), "bench",
            "{}: element {} of {}: expected {}, got {}", what, at + i, got.numel(), value_of(x),
            values[static_cast<std::size_t>(i)]);
    });
  }
}

void CallBench::verify(Kind kind, std::int64_t bytes) const {
  const Prepared p = prepare(kind, bytes);
  const std::int64_t me = group_.rank(), n = group_.size(), part = p.x.numel() / n;
  const auto part_of = [&](const View& x, std::int64_t rank) {
    return x.slice(0, rank * part, (rank + 1) * part);
  };
  fill({.value = -1, .y = p.x}, context_.stream), fill({.value = -1, .y = p.y}, context_.stream);
  if (kind == Kind::all_gather)
    write(part_of(p.x, me), me);
  else if (kind == Kind::reduce_scatter || kind == Kind::exchange)
    for (std::int64_t rank = 0; rank < n; ++rank) write(part_of(p.x, rank), me * n + rank);
  else if (kind != Kind::broadcast || me == 0)
    write(p.x, me);
  make(p);
  synchronize(context_);
  std::vector<std::int64_t> ranks(static_cast<std::size_t>(n)), parts = ranks;  // seeds of sums
  for (std::int64_t rank = 0; rank < n; ++rank)
    ranks[static_cast<std::size_t>(rank)] = rank, parts[static_cast<std::size_t>(rank)] = rank * n + me;
  const std::string what = fmt::format("{} of {} bytes on axis {}", to_string(kind), bytes, group_.axis());
  const auto from = [&](std::int64_t rank) {
    return kind == Kind::exchange ? fmt::format("{}, from its rank {}", what, rank)
                                  : fmt::format("{}, part {}", what, rank);
  };
  agree(everyone_, "bench", [&] {
    if (kind == Kind::all_reduce) expect(p.x, ranks, what);
    if (kind == Kind::all_gather)
      for (std::int64_t rank = 0; rank < n; ++rank) expect(part_of(p.x, rank), {rank}, from(rank));
    if (kind == Kind::reduce_scatter) expect(part_of(p.y, me), parts, what);
    if (kind == Kind::broadcast) expect(p.x, {0}, what);
    if (kind == Kind::exchange)
      for (const Incoming& message : p.incoming)
        expect(message.data, {message.peer * n + me}, from(message.peer));
    if (kind == Kind::send) expect(p.y, {(me + n - 1) % n}, what);
  });
}

CallTime CallBench::time(Kind kind, std::int64_t bytes, double seconds, bool beside_bare) const {
  Prepared p = prepare(kind, bytes);
  p.bare.outgoing = p.outgoing, p.bare.incoming = p.incoming;
  // Sums of sums of .. of zeros do not overflow.
  fill({.value = 0, .y = p.x}, context_.stream), fill({.value = 0, .y = p.y}, context_.stream);
  std::vector<std::function<void()>> works = {[&] { make(p); }};
  if (beside_bare && bare_) works.push_back([&] { bare_->make(p.bare); });
  const std::vector<double> times = time_in_turns(
      everyone_, works, [&] { synchronize(context_); }, seconds);
  CallTime time{kind, group_.size(), bytes, times[0]};
  if (works.size() > 1) time.bare = times[1];
  return time;
}

}  // namespace transmamba
