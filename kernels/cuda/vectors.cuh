// Numbers as memory holds them and as kernels compute with them, several at a time.
#pragma once

#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/cuda/device.cuh"

namespace transmamba::cuda {

/// What a kernel computes in: float32 for bfloat16, else the type itself.
template <class T>
using Compute = std::conditional_t<std::is_same_v<T, bfloat16>, float, T>;

/// Calls f(T{}) with the C++ type of a dtype that this kernel can read and write.
template <class F>
void dispatch_storage(DType dtype, std::string_view op, F&& f) {
  if (dtype == DType::f32) return f(float{});
  if (dtype == DType::f64) return f(double{});
  if (dtype == DType::bf16) return f(bfloat16{});
  fail(op, "element type: expected a floating-point type, got {}", dtype);
}

/// N numbers that lie one after the other, at an address that is a multiple of their size or of 16.
template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
  T values[N];
  __device__ T operator[](int i) const { return values[i]; }
  __device__ static Pack of(const T (&x)[N]) {
    Pack out;
#pragma unroll
    for (int i = 0; i < N; ++i) out.values[i] = x[i];
    return out;
  }
};
template <int N>
struct alignas(N * 2 < 16 ? N * 2 : 16) Pack<bfloat16, N> {
  static_assert(N % 2 == 0);
  std::uint32_t words[N / 2];
  __device__ float operator[](int i) const {
    return __uint_as_float(i % 2 == 0 ? words[i / 2] << 16 : words[i / 2] & 0xffff0000u);
  }
  __device__ static Pack of(const float (&x)[N]) {
    Pack out;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
      out.words[i] = reinterpret_cast<const std::uint32_t&>(pair);
    }
    return out;
  }
};
template <>
struct Pack<bfloat16, 1> {
  bfloat16 value;
  __device__ float operator[](int) const {
    return __uint_as_float(static_cast<std::uint32_t>(value.bits) << 16);
  }
  __device__ static Pack of(const float (&x)[1]) {
    return {{__bfloat16_as_ushort(__float2bfloat16_rn(x[0]))}};
  }
};

template <int N, class T>
__device__ Pack<T, N> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}
template <class T, int N>
__device__ void store_pack(T* to, const Compute<T> (&x)[N]) {
  const auto pack = Pack<T, N>::of(x);
  if constexpr (sizeof(pack) == sizeof(uint4))  // or it may become several stores
    *reinterpret_cast<uint4*>(to) = __builtin_bit_cast(uint4, pack);
  else
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
}
template <class T>
__device__ Compute<T> load(const T* from) {
  return load_pack<1>(from)[0];
}
template <class T>
__device__ void store(T* to, Compute<T> x) {
  const Compute<T> one[1] = {x};
  store_pack(to, one);
}

/// Whether every row of the view can be read and written as packs of n.
inline bool in_packs(const ConstView& view, int n) {
  if (!view) return true;
  const std::int64_t size = size_of(view.dtype()), bytes = std::min<std::int64_t>(16, n * size);
  if (reinterpret_cast<std::uintptr_t>(view.raw()) % static_cast<std::uintptr_t>(bytes) != 0) return false;
  for (int i = 0; i + 1 < view.rank(); ++i)
    if (view.dim(i) > 1 && view.stride(i) * size % bytes != 0) return false;
  return view.rank() == 0 || view.dim(view.rank() - 1) % n == 0;
}

/// 2^x and 1/x of the special function units: enough for bfloat16.
__device__ inline float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float fast_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
constexpr float kLog2e = 1.44269504f;

/// exp, sigmoid and SiLU' for numbers that are stored as T.
template <class T>
__device__ Compute<T> exp_for(Compute<T> x) {
  if constexpr (std::is_same_v<T, bfloat16>)
    return fast_exp2(x * kLog2e);
  else
    return exp(x);
}
template <class T>
__device__ Compute<T> sigmoid_for(Compute<T> x) {
  if constexpr (std::is_same_v<T, bfloat16>)
    return fast_reciprocal(1.0f + fast_exp2(x * -kLog2e));
  else
    return sigmoid(x);
}
template <class T>
__device__ Compute<T> silu_gradient_for(Compute<T> x, Compute<T> sigmoid_of_x) {
  if constexpr (std::is_same_v<T, bfloat16>)  // s + x s (1 - s), in two instructions
    return fmaf(x, fmaf(-sigmoid_of_x, sigmoid_of_x, sigmoid_of_x), sigmoid_of_x);
  else
    return sigmoid_of_x * (1 + x * (1 - sigmoid_of_x));
}

}  // namespace transmamba::cuda
