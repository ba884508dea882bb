// Token files: what training reads and `prepare` writes.
//
// tokens.h5, format 1: 1-D datasets `tokens` (uint16 when the vocabulary allows, else uint32) and
// `document_offsets` (int64: where each document starts, then the end), root attributes `format_version`,
// `tokenizer`, `vocab_size`, `end_of_document`, and for tokenizers with a model `tokenizer_model` (uint8). A
// validation split is the same two datasets in the group `validation`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/hdf5_file.h"
#include "core/tokenizer.h"
#include "kernels/types.h"

namespace transmamba {

enum class Split : std::uint8_t { train, validation };

/// Documents one after the other as one stream of token ids. One thread at a time.
class TokenDataset {
 public:
  /// `path`: a tokens.h5, or Megatron's pair PREFIX.bin and PREFIX.idx by either name or as PREFIX.
  /// Megatron's files have no validation split. Throws Error naming the file and what is wrong with it:
  /// missing, foreign, truncated, inconsistent or empty.
  static std::unique_ptr<TokenDataset> open(const std::filesystem::path& path, Split split = Split::train);
  virtual ~TokenDataset() = default;

  const std::filesystem::path& path() const { return path_; }
  std::int64_t size() const { return size_; }                    ///< tokens, > 0
  std::int64_t num_documents() const { return num_documents_; }  ///< of this split
  bool has_validation() const { return has_validation_; }
  /// Megatron's files do not say: 0, -1 and "".
  std::int64_t vocab_size() const { return vocab_size_; }
  std::int32_t end_of_document() const { return end_of_document_; }
  const std::string& tokenizer() const { return tokenizer_; }              ///< for make_tokenizer()
  const std::string& tokenizer_model() const { return tokenizer_model_; }  ///< likewise

  /// Tokens [begin, begin + out.size()) of the stream. Throws Error when that is not inside it, for damaged
  /// data, and for an id outside [0, limit), where limit is vocab_size() or what limit_vocab() set.
  void read(std::int64_t begin, std::span<std::int32_t> out) const;
  /// Ids from `vocab_size` on are errors: the model's vocabulary, where the file does not know one.
  void limit_vocab(std::int64_t vocab_size) { limit_ = vocab_size; }

 protected:
  virtual void fetch(std::int64_t begin, std::span<std::int32_t> out) const = 0;

  std::filesystem::path path_;
  std::int64_t size_ = 0, num_documents_ = 0, vocab_size_ = 0;
  std::int32_t end_of_document_ = -1;
  bool has_validation_ = false;
  std::string tokenizer_, tokenizer_model_;
  std::int64_t limit_ = 0;  // 0: only negative ids are errors
};

/// Writes a tokens.h5 in bounded memory.
class TokenWriter {
 public:
  TokenWriter(const std::filesystem::path& path, const Tokenizer& tokenizer);
  /// Goes on with the current document of this split. Throws Error for ids outside the vocabulary.
  void append(Split split, std::span<const std::int32_t> tokens);
  /// Adds the end-of-document id; the next append starts a document. Nothing happens in an empty document.
  void end_document(Split split);
  std::int64_t size(Split split) const { return parts_[static_cast<int>(split)].size; }  ///< tokens
  std::int64_t num_documents(Split split) const { return parts_[static_cast<int>(split)].num_documents; }
  /// Ends open documents, writes everything to disk. Throws Error, e.g. when the disk is full.
  void close();

 private:
  struct Part {
    std::string group;  // "" or "validation/"
    bool made = false;
    std::int64_t size = 0, start = 0, num_documents = 0;  // `start` of the current document
  };
  void make(Part& part);

  Hdf5File file_;
  std::int64_t vocab_size_;
  std::int32_t end_of_document_;
  Part parts_[2];
  std::vector<std::uint16_t> narrow_;
};

/// Which tokens make sample number 0, 1, 2, .. of a run. Sample s of an epoch is the window of seq_len + 1
/// tokens at s * seq_len; each epoch goes through all of them once, in an order that is a pure function of
/// (seed, epoch, index) and takes no memory. A run that resumes, on however many ranks, needs only the number
/// of samples done.
class SampleOrder {
 public:
  /// `size` tokens. Throws Error when they do not make one sample.
  SampleOrder(std::int64_t size, std::int64_t seq_len, std::uint64_t seed);
  /// As in the stream, for validation.
  static SampleOrder sequential(std::int64_t size, std::int64_t seq_len);

  std::int64_t seq_len() const { return seq_len_; }
  std::int64_t samples_per_epoch() const { return samples_; }  ///< (size - 1) / seq_len
  /// The sample that stands at `index` in [0, samples_per_epoch()) of epoch `epoch` >= 0.
  std::int64_t sample(std::int64_t epoch, std::int64_t index) const;
  /// First token of sample number `number` >= 0 of the run.
  std::int64_t begin(std::int64_t number) const {
    return sample(number / samples_, number % samples_) * seq_len_;
  }

 private:
  std::int64_t samples_ = 0, seq_len_ = 0;
  std::uint64_t seed_ = 0;
  bool shuffled_ = true;
};

/// Samples [first, first + b) of the run: tokens (b, t) and targets (b, t), the tokens one later; both i32,
/// stride 1 in the last dim, t = order.seq_len().
void read_batch(const TokenDataset& data, const SampleOrder& order, std::int64_t first, const View& tokens,
                const View& targets);

}  // namespace transmamba
