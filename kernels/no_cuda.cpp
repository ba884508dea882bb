// Stands in for kernels/cuda in a build without CUDA: every kernel throws and names itself.
#include <string_view>

#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/device.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/gemm.h"
#include "kernels/qkv_conv.h"
#include "kernels/rms_norm.h"
#include "kernels/shared_memory.h"
#include "kernels/ssd.h"
#include "kernels/step_size.h"
#include "kernels/swiglu.h"

namespace transmamba::cuda {
namespace {

[[noreturn]] void missing(std::string_view op) {
  fail(op, "this build has no CUDA backend: configure with `cmake --preset cuda`, or run on the device cpu");
}

}  // namespace

#define TRANSMAMBA_MISSING(op, Arguments) \
  void op(const Arguments&, const Stream&) { missing(#op); }

TRANSMAMBA_MISSING(adamw, AdamW)
TRANSMAMBA_MISSING(attention, Attention)
TRANSMAMBA_MISSING(attention_backward, AttentionBackward)
TRANSMAMBA_MISSING(cross_entropy_partial, CrossEntropyPartial)
TRANSMAMBA_MISSING(cross_entropy_rescale, CrossEntropyRescale)
TRANSMAMBA_MISSING(cross_entropy_loss, CrossEntropyLoss)
TRANSMAMBA_MISSING(cross_entropy_backward, CrossEntropyBackward)
TRANSMAMBA_MISSING(fill, Fill)
TRANSMAMBA_MISSING(copy, Copy)
TRANSMAMBA_MISSING(add, Add)
TRANSMAMBA_MISSING(sum, Sum)
TRANSMAMBA_MISSING(embedding, Embedding)
TRANSMAMBA_MISSING(embedding_backward, EmbeddingBackward)
TRANSMAMBA_MISSING(gemm, Gemm)
TRANSMAMBA_MISSING(qkv_conv, QkvConv)
TRANSMAMBA_MISSING(qkv_conv_backward, QkvConvBackward)
TRANSMAMBA_MISSING(rms_norm, RmsNorm)
TRANSMAMBA_MISSING(rms_norm_backward, RmsNormBackward)
TRANSMAMBA_MISSING(ssd_summary, SsdSummary)
TRANSMAMBA_MISSING(ssd_summary_backward, SsdSummaryBackward)
TRANSMAMBA_MISSING(ssd_scan, SsdScan)
TRANSMAMBA_MISSING(ssd_scan_backward, SsdScanBackward)
TRANSMAMBA_MISSING(ssd_entry_gradient, SsdEntryGradient)
TRANSMAMBA_MISSING(ssd_combine, SsdCombine)
TRANSMAMBA_MISSING(ssd_combine_backward, SsdCombineBackward)
TRANSMAMBA_MISSING(step_size, StepSize)
TRANSMAMBA_MISSING(step_size_backward, StepSizeBackward)
TRANSMAMBA_MISSING(swiglu, Swiglu)
TRANSMAMBA_MISSING(swiglu_backward, SwigluBackward)

}  // namespace transmamba::cuda

namespace transmamba::gpu {
namespace {

[[noreturn]] void missing() {
  fail(
      "gpu",
      "this build has no CUDA backend: configure with `cmake --preset cuda`, or run with train.device = cpu");
}

}  // namespace

int count() { missing(); }
std::string pci_address(int) { missing(); }
Info select(int) { missing(); }
Stream create_stream(bool) { missing(); }
void destroy_stream(const Stream&) noexcept {}
void synchronize(const Stream&) { missing(); }
bool has_address(const void*) { missing(); }
void copy(void*, const void*, std::int64_t, const Stream&) { missing(); }
Event::Event(bool) { missing(); }
Event::~Event() = default;
Event::Event(Event&&) noexcept = default;
Event& Event::operator=(Event&&) noexcept = default;
void Event::record(const Stream&) { missing(); }
void Event::hold(const Stream&) const { missing(); }
bool Event::passed() const { missing(); }
double Event::seconds_since(const Event&) const { missing(); }
void open_range(const std::string&) { missing(); }
void close_range() noexcept {}
std::unique_ptr<Graph> capture(const Stream&, const std::function<void()>&) { missing(); }
std::byte* allocate_pinned(std::int64_t) { missing(); }
void free_pinned(std::byte*) noexcept {}
std::unique_ptr<MemoryRange> reserve_memory() { missing(); }
std::unique_ptr<SharedMemory> share_memory(std::int64_t, MemoryName&) { missing(); }
std::unique_ptr<SharedMemory> open_memory(const MemoryName&) { missing(); }
void write_word(std::uint32_t*, std::uint32_t, const Stream&) { missing(); }
void wait_for_word(const std::uint32_t*, std::uint32_t, const Stream&) { missing(); }

}  // namespace transmamba::gpu
