// Stands in for nccl.cpp in a build without CUDA.
#include "parallel/comm/nccl.h"

namespace transmamba {
namespace {

[[noreturn]] void missing() {
  fail(
      "nccl",
      "this build has no CUDA backend: configure with `cmake --preset cuda`, or run with train.device = cpu");
}

}  // namespace

struct NcclEngine::State {};
NcclEngine::NcclEngine(const Stream&, const Allocator&, double) { missing(); }
NcclEngine::~NcclEngine() = default;
void NcclEngine::set_timeout(double) { missing(); }
void NcclEngine::look(double) { missing(); }
std::unique_ptr<Communicator> nccl_communicator(std::unique_ptr<Communicator>, NcclEngine&) { missing(); }

}  // namespace transmamba
