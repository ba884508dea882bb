// Stands in for device_memory.cu in a build without CUDA.
#include <stdexcept>

#include "device_memory.h"

namespace transmamba::testing {

bool has_gpu() { return false; }
std::shared_ptr<std::byte> gpu_visible_memory(std::size_t) {
  throw std::logic_error("this build has no CUDA: nothing may ask for a GPU's memory");
}
void wait_for_gpu() {}

}  // namespace transmamba::testing
