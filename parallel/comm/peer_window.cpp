#include "parallel/comm/peer_window.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <fstream>
#include <utility>

#include "kernels/device.h"
#include "kernels/elementwise.h"
#include "parallel/comm/agree.h"

namespace transmamba {
namespace {

constexpr std::int64_t kWordStride = 64;  // bytes: a word a line
constexpr std::int64_t kAlignment = 256;

/// The window as an Allocator takes it.
class Piece : public gpu::MemoryRange {
 public:
  Piece(std::byte* address, std::int64_t size) : address_(address), size_(size) {}
  std::byte* address() const override { return address_; }
  std::int64_t size() const override { return size_; }
  std::int64_t granularity() const override { return kAlignment; }
  bool extend(std::int64_t bytes) override {
    if (used_ + bytes > size_) return false;
    used_ += bytes;
    return true;
  }

 private:
  std::byte* address_;
  std::int64_t size_, used_ = 0;
};

constexpr std::int64_t kSize = sizeof(float);
View numbers(const std::byte* from, std::int64_t at, std::int64_t length) {
  return {const_cast<std::byte*>(from) + at * kSize, DType::f32, {length}};
}

View word(std::int32_t& x) { return {reinterpret_cast<std::byte*>(&x), DType::i32, {1}}; }

/// The same in all containers of a machine, until it is started again.
std::string machine_name() {
  std::string name;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> name;
  return name;
}

}  // namespace

std::unique_ptr<PeerWindow> PeerWindow::open(Communicator& host, std::int64_t bytes, int channels) {
  bytes = window_room(bytes);
  gpu::MemoryName name{};
  std::unique_ptr<gpu::SharedMemory> own;
  std::int32_t failed = 0;
  try {
    own = gpu::share_memory(bytes + 2 * channels * host.size() * kWordStride, name);
  } catch (const Error&) {  // no memory, or none that can be shared: another way takes the messages
    failed = 1;
  }
  host.all_reduce("window", word(failed), Reduce::max);
  if (failed != 0) return nullptr;
  const std::string mine =
      machine_name() + std::string(reinterpret_cast<const char*>(name.data()), name.size());
  const std::vector<std::string> all = gather_text(host, "window", mine);
  std::unique_ptr<PeerWindow> window(new PeerWindow(host, bytes, channels, std::move(own)));
  for (int rank = 0; rank < host.size() && failed == 0; ++rank) {
    const std::string& other = all[static_cast<std::size_t>(rank)];
    const std::size_t text = other.size() - name.size();
    if (rank == host.rank()) continue;
    failed = text == 0 || other.compare(0, text, mine, 0, mine.size() - name.size()) != 0;
    if (failed == 0) try {
        gpu::MemoryName theirs{};
        std::memcpy(theirs.data(), other.data() + text, theirs.size());
        window->peers_[static_cast<std::size_t>(rank)].memory = gpu::open_memory(theirs);
      } catch (const Error&) {
        failed = 1;
      }
  }
  host.all_reduce("window", word(failed), Reduce::max);
  if (failed != 0) return nullptr;
  return window;
}

PeerWindow::PeerWindow(Communicator& host, std::int64_t bytes, int channels,
                       std::unique_ptr<gpu::SharedMemory> own)
    : host_(host),
      bytes_(bytes),
      channels_(channels),
      own_(std::move(own)),
      peers_(static_cast<std::size_t>(host.size())),
      memory_(std::make_unique<Piece>(own_->address(), bytes)) {
  for (Peer& each : peers_) each.counts.resize(static_cast<std::size_t>(channels));
}

PeerWindow::~PeerWindow() {
  if (std::uncaught_exceptions() == 0) try {
      for (Peer& peer : peers_) peer.memory.reset();
      host_.barrier("window");  // before anyone frees what others have open
      return;
    } catch (const Error&) {  // NOLINT: another rank has failed, and says so
    }
  // The end of the process closes and frees.
  for (Peer& peer : peers_) static_cast<void>(peer.memory.release());
  static_cast<void>(own_.release());
}

bool PeerWindow::has(const ConstView& x) const {
  const std::byte* const at = x.raw();
  return x && at >= own_->address() && at < own_->address() + bytes_;
}

bool PeerWindow::takes(const Call& call) const {
  return call.kind == Call::Kind::exchange &&
         std::all_of(call.incoming.begin(), call.incoming.end(), [&](auto& m) { return has(m.data); }) &&
         std::all_of(call.outgoing.begin(), call.outgoing.end(), [&](auto& m) { return has(m.there); });
}

std::uint32_t* PeerWindow::ready(const gpu::SharedMemory& at, int rank, int channel) const {
  const std::int64_t word = 2 * (std::int64_t{rank} * channels_ + channel);
  return reinterpret_cast<std::uint32_t*>(at.address() + bytes_ + word * kWordStride);
}
std::uint32_t* PeerWindow::done(const gpu::SharedMemory& at, int rank, int channel) const {
  return ready(at, rank, channel) + kWordStride / static_cast<std::int64_t>(sizeof(std::uint32_t));
}

void PeerWindow::ask(int from, int channel, const Stream& stream) {
  std::uint32_t& count = peer(from).counts[static_cast<std::size_t>(channel)].asked;
  gpu::write_word(ready(*peer(from).memory, host_.rank(), channel), ++count, stream);
}

void PeerWindow::put(int to, int channel, std::int64_t offset, const ConstView& data, const Stream& stream) {
  std::uint32_t& count = peer(to).counts[static_cast<std::size_t>(channel)].sent;
  gpu::wait_for_word(ready(*own_, to, channel), ++count, stream);
  gpu::copy(peer(to).memory->address() + offset, data.raw(), data.numel() * size_of(data.dtype()), stream);
  gpu::write_word(done(*peer(to).memory, host_.rank(), channel), count, stream);
}

void PeerWindow::await(int from, int channel, const Stream& stream) {
  std::uint32_t& count = peer(from).counts[static_cast<std::size_t>(channel)].received;
  gpu::wait_for_word(done(*own_, from, channel), ++count, stream);
}

void PeerWindow::expect(std::span<const Incoming> incoming, const Stream& stream) {
  for (const Incoming& message : incoming) {
    check(has(message.data), "window", "expected messages into the window, got one to another place");
    if (message.data.numel() == 0) continue;
    ask(message.peer, 0, stream);
    peer(message.peer).expected.push_back(message.data.raw());
  }
}

void PeerWindow::exchange(const Call& call, const Stream& stream) {
  for (const Incoming& message : call.incoming) {
    auto& expected = peer(message.peer).expected;
    if (expected.empty()) {
      ask(message.peer, 0, stream);
      continue;
    }
    check(expected.front() == message.data.raw(), "window",
          "{}: expected what was asked for next of rank {}, got another place", to_string(call),
          message.peer);
    expected.pop_front();
  }
  for (const Outgoing& message : call.outgoing)
    put(message.peer, 0, message.there.raw() - own_->address(), message.data, stream);
  for (const Incoming& message : call.incoming) await(message.peer, 0, stream);
}

void PeerWindow::pass(const Call& call, int channel, std::int64_t slot, const Stream& stream) {
  if (call.kind == Call::Kind::send) return put(call.peer, channel, slot, call.in, stream);
  ask(call.peer, channel, stream);
  await(call.peer, channel, stream);
  gpu::copy(call.out.raw(), own_->address() + slot, call.out.numel() * size_of(call.out.dtype()), stream);
}

std::int64_t PeerWindow::part() const { return bytes_ / (host_.size() - 1) / kAlignment * kAlignment; }

void PeerWindow::load_sum(const Stream& stream) {
  for (const std::int64_t at : {0, 1})  // aligned and not, on memory that is zero
    add({.x = numbers(own_->address(), at, 4), .y = numbers(own_->address(), at + 8, 4)}, stream);
}

/// Many pieces would fill the driver's queue, and the host would wait there for a rank that does not come.
bool PeerWindow::adds(const Call& call) const {
  constexpr std::int64_t kMostPieces = 8;
  return call.kind == Call::Kind::reduce_scatter && call.out.dtype() == DType::f32 &&
         call.out.numel() * kSize <= kMostPieces * part();
}

void PeerWindow::reduce_scatter(const Call& call, const Stream& stream) {
  const int n = host_.size(), me = host_.rank();
  const std::int64_t count = call.out.numel(), most = part() / kSize;
  const auto slot = [this](int from, int at) { return (from < at ? from : from - 1) * part(); };
  const ConstView own = numbers(call.in.raw(), me * count, count);
  if (own.raw() != call.out.raw()) gpu::copy(call.out.raw(), own.raw(), count * kSize, stream);
  for (std::int64_t begin = 0; begin < count; begin += most) {
    const std::int64_t length = std::min(most, count - begin);
    for (int i = 1; i < n; ++i) ask((me + i) % n, 0, stream);
    for (int i = 1; i < n; ++i) {
      const int to = (me + i) % n;
      put(to, 0, slot(me, to), numbers(call.in.raw(), to * count + begin, length), stream);
    }
    for (int from = 0; from < n; ++from) {
      if (from == me) continue;
      await(from, 0, stream);
      add({.x = numbers(own_->address() + slot(from, me), 0, length),
           .y = numbers(call.out.raw(), begin, length)},
          stream);
    }
  }
}

void PeerWindow::release() noexcept {
  constexpr std::uint32_t kFar = 1U << 30;
  try {
    const Stream stream = gpu::create_stream(/*urgent=*/true);  // never destroyed: the process ends
    for (int rank = 0; rank < host_.size(); ++rank)
      for (int channel = 0; channel < channels_ && rank != host_.rank(); ++channel) {
        const Peer::Count& count = peer(rank).counts[static_cast<std::size_t>(channel)];
        gpu::write_word(ready(*own_, rank, channel), count.sent + kFar, stream);
        gpu::write_word(done(*own_, rank, channel), count.asked + kFar, stream);
      }
  } catch (const Error&) {  // NOLINT: the GPU has failed, and waits for nothing
  }
}

}  // namespace transmamba
