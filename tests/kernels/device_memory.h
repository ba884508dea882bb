// Memory that kernels on the GPU and the tests both read and write.
#pragma once

#include <cstddef>
#include <memory>

namespace transmamba::testing {

/// Whether kernels can run on a GPU here. The first call of a CUDA build prints what it found.
bool has_gpu();
/// Why a test of a GPU alone is skipped without one; tools/test-gpu fails on that.
inline constexpr const char* kNoGpu = "no GPU was found here";

/// Host memory that the GPU reads and writes through the bus.
std::shared_ptr<std::byte> gpu_visible_memory(std::size_t bytes);

/// Waits for all work on the GPU. A failure there is a failure of the test.
void wait_for_gpu();

}  // namespace transmamba::testing
