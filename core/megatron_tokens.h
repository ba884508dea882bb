// Megatron-LM's token files.
#pragma once

#include <memory>

#include "core/tokens.h"

namespace transmamba {

/// PREFIX.bin: the token ids. PREFIX.idx: "MMIDIDX\0\0", u64 version 1, u8 type code (1 u8, 2 i8, 3 i16, 4
/// i32, 5 i64, 8 u16), u64 number of sequences S, u64 length of the document index D, i32 lengths[S] in
/// tokens, i64 pointers[S] in bytes into the .bin, i64 documents[D]: the sequences with which documents
/// begin, and S. All little endian. The stream is the sequences in the order of the .idx.
std::unique_ptr<TokenDataset> open_megatron(const std::filesystem::path& prefix);

}  // namespace transmamba
