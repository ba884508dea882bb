// A small SentencePiece model, trained on the spot by spm_train.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

#include "tests/core/files.h"

namespace transmamba::testing {

inline constexpr const char* kLossless =
    "--normalization_rule_name=identity --remove_extra_whitespaces=false --byte_fallback=true "
    "--add_dummy_prefix=false";

/// 400 pieces, BPE, of made-up sentences.
inline std::filesystem::path piece_model(const Folder& folder, const std::string& options = kLossless) {
  const char* const words[] = {"the",    "quick",   "brown",      "fox",       "jumps",    "over",
                               "lazy",   "dogs",    "while",      "seven",     "wizards",  "conjure",
                               "bright", "zephyrs", "among",      "violet",    "kingdoms", "of",
                               "and",    "memory",  "transition", "attention", "sequence", "state"};
  std::string text;
  unsigned state = 1;
  for (int line = 0; line < 400; ++line) {
    for (int word = 0; word < 12; ++word) {
      state = state * 1664525U + 1013904223U;
      text += std::string(word == 0 ? "" : " ") + words[(state >> 16) % 24];
      if ((state >> 8) % 7 == 0) text += static_cast<char>('a' + (state >> 20) % 26);
    }
    text += '\n';
  }
  spill(folder / "train.txt", text);
  const std::string prefix = (folder / "pieces").string();
  const std::string command = "spm_train --input=" + (folder / "train.txt").string() +
                              " --model_prefix=" + prefix + " --vocab_size=400 --model_type=bpe " + options +
                              " >/dev/null 2>&1";
  EXPECT_EQ(std::system(command.c_str()), 0)
      << "needs spm_train (Debian's package sentencepiece): " << command;
  return prefix + ".model";
}

}  // namespace transmamba::testing
