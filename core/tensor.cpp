#include "core/tensor.h"

#include "kernels/elementwise.h"

namespace transmamba {
namespace {

std::int64_t bytes_of(const Tensor& x) { return x.numel() * size_of(x.dtype()); }

Stream host_stream(const Context& context) { return {Device::cpu, context.stream.threads, nullptr}; }

}  // namespace

Tensor::Tensor(Allocator& allocator, const Shape& shape, DType dtype)
    : block_(allocator.allocate(shape.numel() * size_of(dtype))), view_(block_.get(), dtype, shape) {}

void synchronize(const Context& context) {
  if (context.stream.device == Device::cuda) gpu::synchronize(context.stream);
}

Tensor to_device(const Context& context, const Tensor& host) {
  if (context.stream.device == Device::cpu) return host;
  check(host.view().contiguous(), "to_device", "expected a contiguous tensor, got strides {} for {}",
        host.view().strides(), host.shape());
  const Tensor out = context.empty(host.shape(), host.dtype());
  gpu::copy(out.view().raw(), host.view().raw(), bytes_of(host), context.stream);
  return out;
}

Tensor to_host(const Context& context, const Tensor& x) {
  if (context.stream.device == Device::cpu) return x;
  Tensor dense = x;
  if (!x.view().contiguous()) {
    dense = context.empty(x.shape(), x.dtype());
    copy({.x = x, .y = dense}, context.stream);
  }
  const Tensor out = context.empty_host(x.shape(), x.dtype());
  gpu::copy(out.view().raw(), dense.view().raw(), bytes_of(dense), context.stream);
  synchronize(context);
  return out;
}

Tensor to_host(const Context& context, const View& x) { return to_host(context, Tensor(x)); }

void from_host(const Context& context, const Tensor& host, const View& to) {
  check(host.view().contiguous() && to.contiguous() && host.shape() == to.shape(), "from_host",
        "expected contiguous views of one shape, got {} and {}", host.shape(), to.shape());
  if (context.stream.device == Device::cpu) return copy({.x = host, .y = to}, context.stream);
  Tensor rounded = host;
  if (host.dtype() != to.dtype()) {
    rounded = context.empty_host(host.shape(), to.dtype());
    copy({.x = host, .y = rounded}, host_stream(context));
  }
  gpu::copy(to.raw(), rounded.view().raw(), bytes_of(rounded), context.stream);
}

}  // namespace transmamba
