// The GPU itself. Memory comes from the driver's virtual memory functions, which are looked up while the
// program runs: linking the driver's library would make binaries that do not start where there is no driver.
#include "kernels/device.h"

#include <cuda.h>
#include <nvtx3/nvToolsExt.h>

#include <array>
#include <cctype>
#include <chrono>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/cuda/device.cuh"

namespace transmamba {

void* cuda::find_in_driver(const char* name, unsigned version) {
  cudaDriverEntryPointQueryResult found{};
  void* address = nullptr;
  check_cuda(cudaGetDriverEntryPointByVersion(name, &address, version, cudaEnableDefault, &found), name);
  check(found == cudaDriverEntryPointSuccess && address != nullptr, "gpu",
        "{}: this GPU driver is too old and does not have it", name);
  return address;
}

void cuda::check_hopper(std::string_view op) {
  int device = 0, major = 0;
  check_cuda(cudaGetDevice(&device), op);
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), op);
  constexpr std::string_view kBuiltFor = TRANSMAMBA_CUDA_ARCHITECTURES;
  check(major == 9 && kBuiltFor.find("90a") != std::string_view::npos, op,
        "bfloat16: expected a GPU of compute capability 9.0 and a build for 90a-real, got {}.x and {}", major,
        kBuiltFor);
}

namespace gpu {
namespace {

using cuda::check_cuda;
using cuda::handle_of;

cudaEvent_t event_of(void* handle) { return static_cast<cudaEvent_t>(handle); }

template <class Function>
void find_in_driver(Function& function, const char* name, unsigned version) {
  function = reinterpret_cast<Function>(cuda::find_in_driver(name, version));
}

struct Driver {
  decltype(&cuMemGetAllocationGranularity) granularity = nullptr;
  decltype(&cuMemAddressReserve) reserve = nullptr;
  decltype(&cuMemAddressFree) free = nullptr;
  decltype(&cuMemCreate) create = nullptr;
  decltype(&cuMemRelease) release = nullptr;
  decltype(&cuMemMap) map = nullptr;
  decltype(&cuMemUnmap) unmap = nullptr;
  decltype(&cuMemSetAccess) set_access = nullptr;

  Driver() {
    constexpr unsigned kVersion = 10020;  // CUDA 10.2, which brought them
    find_in_driver(granularity, "cuMemGetAllocationGranularity", kVersion);
    find_in_driver(reserve, "cuMemAddressReserve", kVersion);
    find_in_driver(free, "cuMemAddressFree", kVersion);
    find_in_driver(create, "cuMemCreate", kVersion);
    find_in_driver(release, "cuMemRelease", kVersion);
    find_in_driver(map, "cuMemMap", kVersion);
    find_in_driver(unmap, "cuMemUnmap", kVersion);
    find_in_driver(set_access, "cuMemSetAccess", kVersion);
  }
};

class Range : public MemoryRange {
 public:
  Range() {
    check_cuda(cudaGetDevice(&device_), "gpu");
    properties_.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties_.location = {CU_MEM_LOCATION_TYPE_DEVICE, device_};
    std::size_t granularity = 0, free = 0, total = 0;
    must(driver_.granularity(&granularity, &properties_, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
         "granularity of memory");
    granularity_ = static_cast<std::int64_t>(granularity);
    check_cuda(cudaMemGetInfo(&free, &total), "gpu");
    size_ = (static_cast<std::int64_t>(total) + granularity_ - 1) / granularity_ * granularity_;
    must(driver_.reserve(&address_, static_cast<std::size_t>(size_), 0, 0, 0), "reserving addresses");
  }
  ~Range() override {
    cudaDeviceSynchronize();
    std::int64_t at = 0;
    for (const auto& [handle, bytes] : pieces_) {
      driver_.unmap(address_ + static_cast<CUdeviceptr>(at), static_cast<std::size_t>(bytes));
      driver_.release(handle);
      at += bytes;
    }
    driver_.free(address_, static_cast<std::size_t>(size_));
  }
  std::byte* address() const override { return reinterpret_cast<std::byte*>(address_); }
  std::int64_t size() const override { return size_; }
  std::int64_t granularity() const override { return granularity_; }

  bool extend(std::int64_t bytes) override {
    if (mapped_ + bytes > size_) return false;
    const auto size = static_cast<std::size_t>(bytes);
    const CUdeviceptr at = address_ + static_cast<CUdeviceptr>(mapped_);
    pieces_.reserve(pieces_.size() + 1);  // nothing after create() may throw but must()
    CUmemGenericAllocationHandle handle = 0;
    CUresult result = driver_.create(&handle, size, &properties_, 0);
    if (result == CUDA_ERROR_OUT_OF_MEMORY && trim()) result = driver_.create(&handle, size, &properties_, 0);
    if (result == CUDA_ERROR_OUT_OF_MEMORY) return false;
    must(result, "taking memory");
    result = driver_.map(at, size, 0, handle, 0);
    if (result != CUDA_SUCCESS) driver_.release(handle);
    must(result, "mapping memory");
    const CUmemAccessDesc access{properties_.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    result = driver_.set_access(at, size, &access, 1);
    if (result != CUDA_SUCCESS) driver_.unmap(at, size), driver_.release(handle);
    must(result, "opening memory");
    pieces_.emplace_back(handle, bytes);
    mapped_ += bytes;
    return true;
  }

 private:
  /// Gives back what the driver's pool keeps for workspaces that come from there. False if it cannot.
  bool trim() const {
    cudaMemPool_t pool = nullptr;
    const bool trimmed = cudaDeviceGetDefaultMemPool(&pool, device_) == cudaSuccess &&
                         cudaMemPoolTrimTo(pool, 0) == cudaSuccess;
    if (!trimmed) cudaGetLastError();  // or the next launch would report this one
    return trimmed;
  }
  static void must(CUresult result, const char* what) {
    check(result == CUDA_SUCCESS, "gpu", "{}: the driver's error {}", what, static_cast<int>(result));
  }

  Driver driver_;
  int device_ = 0;
  CUmemAllocationProp properties_{};
  CUdeviceptr address_ = 0;
  std::int64_t granularity_ = 0, size_ = 0, mapped_ = 0;
  std::vector<std::pair<CUmemGenericAllocationHandle, std::int64_t>> pieces_;
};

class ExecutableGraph : public Graph {
 public:
  explicit ExecutableGraph(cudaGraph_t graph) {
    check_cuda(cudaGraphInstantiate(&graph_, graph, 0), "gpu graph");
  }
  ~ExecutableGraph() override { cudaGraphExecDestroy(graph_); }
  void launch(const Stream& stream) const override {
    check_cuda(cudaGraphLaunch(graph_, handle_of(stream)), "gpu graph");
  }

 private:
  cudaGraphExec_t graph_ = nullptr;
};

/// "f0e1..": 16 bytes.
std::string hexadecimal(const cudaUUID_t& uuid) {
  std::string text;
  for (const char byte : uuid.bytes) text += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  return text;
}

__global__ void nothing() {}  // compiled for what all kernels are

}  // namespace

int count() {
  int count = 0, driver = 0;
  const cudaError_t result = cudaGetDeviceCount(&count);
  cudaGetLastError();
  const bool has_driver = cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0;
  check(has_driver, "gpu", "no NVIDIA driver was found on this machine; train.device = cpu runs without one");
  check(result == cudaSuccess || result == cudaErrorNoDevice, "gpu", "{}: {}", cudaGetErrorName(result),
        cudaGetErrorString(result));
  check(count > 0, "gpu",
        "no GPU was found on this machine (CUDA_VISIBLE_DEVICES may hide it); train.device = cpu runs "
        "without one");
  return count;
}

std::string pci_address(int device) {
  std::array<char, 32> text{};
  check_cuda(cudaDeviceGetPCIBusId(text.data(), static_cast<int>(text.size()), device), "gpu");
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text.data();  // as the system's files have it
}

Info select(int device) {
  check_cuda(cudaSetDevice(device), "gpu");
  cudaFuncAttributes attributes{};
  const cudaError_t found = cudaFuncGetAttributes(&attributes, nothing);
  cudaGetLastError();  // or the next launch would report this one
  const bool has_kernels =
      found != cudaErrorNoKernelImageForDevice && found != cudaErrorInvalidDeviceFunction;
  if (has_kernels) check_cuda(found, "gpu");
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, device), "gpu");
  std::size_t free = 0, total = 0;
  check_cuda(cudaMemGetInfo(&free, &total), "gpu");
  return {properties.name,
          properties.major,
          properties.minor,
          static_cast<std::int64_t>(free),
          static_cast<std::int64_t>(total),
          TRANSMAMBA_CUDA_ARCHITECTURES,
          has_kernels,
          hexadecimal(properties.uuid)};
}

Stream create_stream(bool urgent) {
  cudaStream_t handle = nullptr;
  int least = 0, greatest = 0;
  check_cuda(cudaDeviceGetStreamPriorityRange(&least, &greatest), "gpu");
  check_cuda(cudaStreamCreateWithPriority(&handle, cudaStreamNonBlocking, urgent ? greatest : least), "gpu");
  Stream stream;
  stream.device = Device::cuda;
  stream.handle = handle;
  return stream;
}

void destroy_stream(const Stream& stream) noexcept {
  cudaStreamSynchronize(handle_of(stream));
  cudaStreamDestroy(handle_of(stream));
}

void synchronize(const Stream& stream) {
  using Clock = std::chrono::steady_clock;
  constexpr int kPollsBetweenLooks = 1024;  // about a millisecond
  if (!stream.watch) return check_cuda(cudaStreamSynchronize(handle_of(stream)), "gpu");
  const auto start = Clock::now();
  for (std::int64_t polls = 1;; ++polls) {
    const cudaError_t result = cudaStreamQuery(handle_of(stream));
    if (result != cudaErrorNotReady) return check_cuda(result, "gpu");
    cudaGetLastError();  // or the next launch would report this one
    if (polls % kPollsBetweenLooks == 0)
      stream.watch->look(std::chrono::duration<double>(Clock::now() - start).count());
    else
      std::this_thread::yield();
  }
}

bool has_address(const void* address) {
  cudaPointerAttributes attributes{};
  check_cuda(cudaPointerGetAttributes(&attributes, address), "gpu");
  return attributes.type == cudaMemoryTypeDevice;
}

void copy(void* to, const void* from, std::int64_t bytes, const Stream& stream) {
  if (bytes > 0)
    check_cuda(
        cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDefault, handle_of(stream)),
        "gpu copy");
}

Event::Event(bool timed) {
  cudaEvent_t event = nullptr;
  check_cuda(cudaEventCreateWithFlags(&event, timed ? cudaEventDefault : cudaEventDisableTiming), "gpu");
  handle_ = event;
}
Event::~Event() {
  if (handle_) cudaEventDestroy(event_of(handle_));
}
Event::Event(Event&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
Event& Event::operator=(Event&& other) noexcept {
  std::swap(handle_, other.handle_);
  return *this;
}
void Event::record(const Stream& stream) {
  check_cuda(cudaEventRecord(event_of(handle_), handle_of(stream)), "gpu");
}
void Event::hold(const Stream& stream) const {
  check_cuda(cudaStreamWaitEvent(handle_of(stream), event_of(handle_), 0), "gpu");
}
bool Event::passed() const {
  const cudaError_t result = cudaEventQuery(event_of(handle_));
  if (result == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  check_cuda(result, "gpu");
  return true;
}
double Event::seconds_since(const Event& earlier) const {
  float milliseconds = 0;
  check_cuda(cudaEventElapsedTime(&milliseconds, event_of(earlier.handle_), event_of(handle_)), "gpu");
  return 1e-3 * static_cast<double>(milliseconds);
}

void open_range(const std::string& name) { nvtxRangePushA(name.c_str()); }
void close_range() noexcept { nvtxRangePop(); }

std::unique_ptr<Graph> capture(const Stream& stream, const std::function<void()>& work) {
  const cudaStream_t handle = handle_of(stream);
  cudaGraph_t graph = nullptr;
  check_cuda(cudaStreamBeginCapture(handle, cudaStreamCaptureModeRelaxed), "gpu graph");
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(handle, &graph);
    cudaGetLastError();
    if (graph) cudaGraphDestroy(graph);
    throw;
  }
  check_cuda(cudaStreamEndCapture(handle, &graph), "gpu graph");
  const std::unique_ptr<std::remove_pointer_t<cudaGraph_t>, cudaError_t (*)(cudaGraph_t)> owned(
      graph, cudaGraphDestroy);
  return std::make_unique<ExecutableGraph>(graph);
}

std::byte* allocate_pinned(std::int64_t bytes) {
  void* memory = nullptr;
  check_cuda(cudaHostAlloc(&memory, static_cast<std::size_t>(bytes), cudaHostAllocDefault), "gpu");
  return static_cast<std::byte*>(memory);
}
void free_pinned(std::byte* memory) noexcept { cudaFreeHost(memory); }

std::unique_ptr<MemoryRange> reserve_memory() { return std::make_unique<Range>(); }

}  // namespace gpu
}  // namespace transmamba
