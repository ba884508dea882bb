// What a rank runs on, where that is not there: one error, before anything else.
#include "launch/session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/core/files.h"

namespace transmamba {
namespace {

using ::testing::AllOf;
using testing::error_of;
using ::testing::HasSubstr;

TrainConfig with_dtype(const char* dtype) {
  TrainConfig config;
  config.device = "cuda", config.dtype = dtype;
  return config;
}

/// As a build for Hopper sees it.
gpu::Info gpu_of(const char* name, int major) {
  gpu::Info gpu;
  gpu.name = name, gpu.major = major;
  gpu.built_for = "90a-real", gpu.has_kernels = major == 9;
  return gpu;
}
gpu::Info hopper() { return gpu_of("NVIDIA H200", 9); }
gpu::Info ampere() { return gpu_of("NVIDIA A100", 8); }

TEST(Gpu, AHopperTakesEveryType) {
  for (const char* dtype : {"bfloat16", "float32", "float64"})
    EXPECT_NO_THROW(check_gpu(with_dtype(dtype), hopper())) << dtype;
}

TEST(Gpu, OnlyAHopperTakesBfloat16InAnyBuild) {
  EXPECT_THROW(check_gpu(with_dtype("bfloat16"), gpu_of("NVIDIA B200", 10)), Error);
  for (const bool has_kernels : {false, true}) {
    gpu::Info gpu = ampere();
    gpu.has_kernels = has_kernels;
    EXPECT_THAT(error_of([&] { check_gpu(with_dtype("bfloat16"), gpu); }),
                AllOf(HasSubstr("train.dtype = bfloat16"), HasSubstr("9.0 (H100, H200)"),
                      HasSubstr("NVIDIA A100"), HasSubstr("8.0"), HasSubstr("train.dtype = float32")));
  }
}

TEST(Gpu, AnOlderOneNeedsABuildOfItsOwnForOtherTypes) {
  EXPECT_THAT(error_of([] { check_gpu(with_dtype("float32"), ampere()); }),
              AllOf(HasSubstr("NVIDIA A100"), HasSubstr("8.0"), HasSubstr("for 90a-real"),
                    HasSubstr("-DCMAKE_CUDA_ARCHITECTURES=80")));
  gpu::Info gpu = ampere();
  gpu.has_kernels = true;
  EXPECT_NO_THROW(check_gpu(with_dtype("float32"), gpu));
}

TEST(Gpu, EveryRankNeedsOneOfItsOwn) {
  EXPECT_NO_THROW(check_own_gpus({"a", "c", "b"}, "NVIDIA H200"));
  EXPECT_THAT(error_of([] {
                check_own_gpus({"a", "b", "a"}, "NVIDIA H200");
              }),
              AllOf(HasSubstr("a GPU for every rank"), HasSubstr("ranks 0 and 2"), HasSubstr("NVIDIA H200")));
}

TEST(Gpu, AHopperWantsABuildForHopperWhereProductsAreOfWarpgroups) {
  gpu::Info gpu = hopper();
  gpu.built_for = "80";  // whose PTX the driver has compiled for it
  EXPECT_NO_THROW(check_gpu(with_dtype("float32"), gpu));
  EXPECT_THAT(error_of([&] { check_gpu(with_dtype("bfloat16"), gpu); }),
              AllOf(HasSubstr("NVIDIA H200"), HasSubstr("for 80:"),
                    HasSubstr("-DCMAKE_CUDA_ARCHITECTURES=90a-real")));
}

}  // namespace
}  // namespace transmamba
