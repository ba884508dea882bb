#include "launch/noise.h"

#include <algorithm>

#include "core/random.h"
#include "kernels/elementwise.h"

namespace transmamba {

Tensor noise(const Context& context, const Shape& shape, DType dtype) {
  constexpr std::int64_t kDrawn = 65537;  // then repeated: prime, so that rows next to each other differ
  const Tensor x = context.empty(shape, dtype);
  const View flat(x.view().raw(), dtype, {x.numel()});
  std::int64_t done = std::min(kDrawn, x.numel());
  const Tensor host = context.empty_host({done}, dtype);
  for (std::int64_t i = 0; i < done; ++i) {
    const double value = 2 * uniform(0, stream_of("bench"), static_cast<std::uint64_t>(i)) - 1;
    if (dtype == DType::bf16)
      host.ptr<bfloat16>()[i] = to_bfloat16(static_cast<float>(value));
    else if (dtype == DType::f32)
      host.ptr<float>()[i] = static_cast<float>(value);
    else
      host.ptr<double>()[i] = value;
  }
  from_host(context, host, flat.slice(0, 0, done));
  for (; done < x.numel(); done *= 2) {
    const std::int64_t more = std::min(done, x.numel() - done);
    copy({.x = flat.slice(0, 0, more), .y = flat.slice(0, done, done + more)}, context.stream);
  }
  return x;
}

}  // namespace transmamba
