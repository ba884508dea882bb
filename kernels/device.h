// What the program needs of a GPU beside kernels: which there are, streams, copies, memory. In a build
// without CUDA every function here throws Error and says so. Sizes are bytes. "The GPU" is the one that the
// calling thread has selected.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "kernels/types.h"

namespace transmamba::gpu {

struct Info {
  std::string name;          ///< "NVIDIA H200"
  int major = 0, minor = 0;  ///< compute capability
  std::int64_t free_bytes = 0, total_bytes = 0;
  std::string built_for;    ///< architectures that this build's kernels are for: "90a-real"
  bool has_kernels = true;  ///< whether they run on this GPU
  std::string uuid;         ///< of this GPU and no other
};

/// At least 1: throws Error where there is no driver or no GPU.
int count();
/// Where it is plugged in: "0000:61:00.0". Does not touch the GPU.
std::string pci_address(int device);
/// The GPU of everything that the calling thread does from now on.
Info select(int device);

/// An own order of work, beside that of all other streams; of an urgent one blocks of kernels go first.
Stream create_stream(bool urgent = false);
/// Waits for its work first.
void destroy_stream(const Stream& stream) noexcept;
/// The host waits for the stream's work, and asks Stream::watch meanwhile.
void synchronize(const Stream& stream);
/// Whether an address is of GPU memory; pinned memory is the host's.
bool has_address(const void* address);

/// Between GPU memory and pinned host memory, in either direction, in the order of the stream; returns at
/// once. The host may touch its side after synchronize() or an Event.
void copy(void* to, const void* from, std::int64_t bytes, const Stream& stream);

/// A point in the order of a stream.
class Event {
 public:
  Event() : Event(false) {}
  explicit Event(bool timed);
  ~Event();
  Event(Event&& other) noexcept;
  Event& operator=(Event&& other) noexcept;
  void record(const Stream& stream);
  /// What is enqueued on `stream` from now on begins after the point that was recorded last.
  void hold(const Stream& stream) const;
  bool passed() const;  ///< true before the first record()
  /// Between two timed events that have passed, on the GPU's clock.
  double seconds_since(const Event& earlier) const;

 private:
  [[maybe_unused]] void* handle_ = nullptr;  // in a build without CUDA
};

/// A named range of what the calling thread enqueues, in the timeline of NVIDIA's tools (NVTX); they nest.
void open_range(const std::string& name);
void close_range() noexcept;

/// Work on a stream that can be enqueued again, at once: the same kernels on the same addresses.
class Graph {
 public:
  virtual ~Graph() = default;
  virtual void launch(const Stream& stream) const = 0;
};
/// What work() enqueues on the stream, which is not run. It must not wait for the GPU.
std::unique_ptr<Graph> capture(const Stream& stream, const std::function<void()>& work);

/// Host memory that copies reach without a detour. Slow to get: keep it.
std::byte* allocate_pinned(std::int64_t bytes);
void free_pinned(std::byte* memory) noexcept;

/// A range of addresses, behind which memory is put from its start on.
class MemoryRange {
 public:
  virtual ~MemoryRange() = default;
  virtual std::byte* address() const = 0;
  virtual std::int64_t size() const = 0;         ///< of the range: as much as can ever be put behind it
  virtual std::int64_t granularity() const = 0;  ///< what extend() takes multiples of
  /// Puts more memory behind what has some; false, and nothing is changed, where there is none left.
  virtual bool extend(std::int64_t bytes) = 0;
};
/// As large as the GPU's memory. Its destructor waits for all work of the GPU.
std::unique_ptr<MemoryRange> reserve_memory();

}  // namespace transmamba::gpu
