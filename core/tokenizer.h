// Text to token ids and back.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace transmamba {

/// Immutable, so one may be used by several threads.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  /// What make_tokenizer() was given. Stored in token files and checkpoints.
  virtual std::string name() const = 0;
  /// The model of a sentencepiece tokenizer as bytes, stored beside the name so that neither needs the
  /// model's file again; empty for tokenizers without one.
  virtual std::string model() const { return ""; }
  /// Ids are [0, vocab_size()), end_of_document() among them.
  virtual std::int32_t vocab_size() const = 0;
  virtual std::int32_t end_of_document() const = 0;
  /// Without end_of_document(). Text may be any bytes. Cutting it after a line feed changes nothing:
  /// encode(a + "\n" + b) is encode(a + "\n") followed by encode(b).
  virtual std::vector<std::int32_t> encode(std::string_view text) const = 0;
  /// Tokens one after the other: decode(a followed by b) is decode(a) + decode(b), so a token may end inside
  /// a UTF-8 character (see Utf8Stream). End of document and control tokens give nothing; ids outside the
  /// vocabulary, which a model with a padded vocabulary can sample, U+FFFD.
  virtual std::string decode(std::span<const std::int32_t> tokens) const = 0;
};

/// "bytes": ids 0..255 are the bytes, 256 is the end of a document; decode(encode(x)) == x for any x.
/// "sentencepiece:MODEL": a SentencePiece model file, or `model` if that is not empty (then MODEL is but a
/// name). The end of a document is the model's eos piece; a model without one gets an id past its last piece.
/// Lossless for models with byte fallback, identity normalisation, no removal of white space and no dummy
/// prefix. Throws Error for any other name, and for a model that is missing or damaged.
std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name, const std::string& model = "");

/// Makes valid UTF-8 for a terminal of what a sampler decodes token by token: holds back a character until
/// its last byte, and turns bytes that are part of none into U+FFFD.
class Utf8Stream {
 public:
  std::string push(std::string_view bytes);  ///< what is complete now
  std::string finish();                      ///< U+FFFD for a character that stayed incomplete

 private:
  std::string held_;
};

/// Length of the UTF-8 character that `text` begins with; 0 if it begins with none; -1 if it ends inside one.
/// An empty text gives -1.
int utf8_character(std::string_view text);

}  // namespace transmamba
