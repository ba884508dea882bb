// CUDA kernels in bfloat16 against the CPU's in float64, on the same numbers.
#pragma once

#include "testing.h"

namespace transmamba::testing {

/// One tensor twice: as the GPU has it, and the same numbers in float64.
struct Twin {
  Array gpu, cpu;
  Twin() = default;  // absent
  explicit Twin(const Array& on_gpu) : gpu(on_gpu), cpu(on_gpu->shape(), DType::f64) { cpu.assign(gpu); }
};

/// Whether the GPU's result is the CPU's.
inline ::testing::AssertionResult agree(const Twin& twin) {
  return near(twin.gpu, [&](auto& at) { return get(twin.cpu, at); });
}

/// Makes twins: T is bfloat16, S float32.
class Twins {
 public:
  explicit Twins(Layout layout, unsigned seed = 1)
      : t_({DType::bf16, layout, on_gpu()}, seed), s_({DType::f32, layout, on_gpu()}, seed + 1000) {}
  static TestStream on_gpu() { return {Device::cuda}; }
  Twin normal(const Shape& shape, double scale = 1) { return Twin(t_.normal(shape, scale)); }
  Twin poisoned(const Shape& shape) { return Twin(t_.poisoned(shape)); }
  Twin normal_s(const Shape& shape, double scale = 1) { return Twin(s_.normal(shape, scale)); }
  Twin uniform_s(const Shape& shape, double low, double high) { return Twin(s_.uniform(shape, low, high)); }
  Twin poisoned_s(const Shape& shape) { return Twin(s_.poisoned(shape)); }
  Array tokens(const Shape& shape, int vocab) { return t_.tokens(shape, vocab); }

 private:
  Arrays t_, s_;
};

inline std::vector<Layout> layouts() { return {Layout::contiguous, Layout::strided, Layout::padded}; }

}  // namespace transmamba::testing
