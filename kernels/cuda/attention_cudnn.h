// Attention of bfloat16 by cuDNN's fused kernels: one graph a shape. attention_bf16.cu makes any call out of
// these.
#pragma once

#include "kernels/attention.h"

namespace transmamba::cuda {

/// Which keys a query sees: as many as it has, the last query seeing the last key, or all of them.
enum class Mask : std::uint8_t { causal, none };

/// cuDNN's way to compute one shape with given strides: found by a thread's first call and kept by it, which
/// takes some time, so such calls do not belong in a step that is being measured or captured. A reference is
/// good until the thread's next call of fused_plan(); the kernels of a captured run() for as long as the
/// thread.
struct FusedPlan;

/// lse must be contiguous. Of an argument only types, shapes and strides are looked at; `offset` is not, nor
/// what says whether results are added to what there is: they are not.
const FusedPlan& fused_plan(const Attention&, Mask);
const FusedPlan& fused_plan(const AttentionBackward&, Mask, bool deterministic);

std::int64_t workspace_bytes(const FusedPlan&);

/// The arguments must be like those that the plan was made for.
void run(const FusedPlan&, const Attention&, std::byte* workspace, const Stream&);
void run(const FusedPlan&, const AttentionBackward&, std::byte* workspace, const Stream&);

}  // namespace transmamba::cuda
