// Multiplies two small matrices with the library, as a user's own program would.
#include <transmamba/core/tensor.h>
#include <transmamba/kernels/gemm.h>

#include <cstdio>

int main() {
  using namespace transmamba;
  Allocator memory;
  const Context context{
      .stream = {.device = Device::cpu, .threads = 1}, .dtype = DType::f32, .memory = &memory};
  const Tensor a = context.empty({2, 3}), b = context.empty({3, 2}), c = context.empty({2, 2});
  for (int i = 0; i < 6; ++i) {
    a.ptr<float>()[i] = static_cast<float>(i + 1);  // 1 2 3 / 4 5 6
    b.ptr<float>()[i] = static_cast<float>(i % 2);  // 0 1 / 0 1 / 0 1
  }
  gemm({.a = a, .b = b, .c = c}, context.stream);
  std::printf("%s:", to_string(c.shape()).c_str());
  for (int i = 0; i < 4; ++i) std::printf(" %g", static_cast<double>(c.ptr<float>()[i]));
  std::printf("\n");
}
