// TransPoint schedules: in each mixer, tokens before its TransPoint P use attention and the rest the SSM.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/config.h"

namespace transmamba {

/// TransPoint of every mixer in order, clamped to [0, length]. `model.transpoints` is the name of a schedule
/// (V1 .. V9 of the paper, transformer, mamba, hybrid) or a comma-separated list of non-negative numbers and
/// `T` (the sequence length), cycled over the mixers. With transpoint_unit = fraction the numbers are
/// fractions of seq_len in [0, 1] (rounded), and a named schedule is scaled from the paper's 8192 to seq_len.
/// `length` is that of the sequence at hand where it is not the trained seq_len: T, and with it "everything
/// attends", means `length`, while numbers stay where they were trained. Throws Error naming what is allowed.
std::vector<std::int64_t> resolve_transpoints(const ModelConfig& model, std::int64_t seq_len,
                                              std::int64_t length);
inline std::vector<std::int64_t> resolve_transpoints(const ModelConfig& model, std::int64_t seq_len) {
  return resolve_transpoints(model, seq_len, seq_len);
}

}  // namespace transmamba
