#pragma once

#include "kernels/attention.h"

namespace transmamba::cuda {

void attention_bf16(const Attention&, const Stream&);
void attention_backward_bf16(const AttentionBackward&, const Stream&);

}  // namespace transmamba::cuda
