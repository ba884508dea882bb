#include "core/tokenizer.h"

#include <sentencepiece_processor.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "kernels/check.h"

namespace transmamba {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD
constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581, SentencePiece's way to write a space

class Bytes final : public Tokenizer {
 public:
  std::string name() const override { return "bytes"; }
  std::int32_t vocab_size() const override { return 257; }
  std::int32_t end_of_document() const override { return 256; }

  std::vector<std::int32_t> encode(std::string_view text) const override {
    const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
    return {bytes, bytes + text.size()};
  }

  std::string decode(std::span<const std::int32_t> tokens) const override {
    std::string text;
    for (const std::int32_t token : tokens) {
      if (token >= 0 && token < 256)
        text += static_cast<char>(token);
      else if (token != 256)
        text += kReplacement;
    }
    return text;
  }
};

class SentencePiece final : public Tokenizer {
 public:
  SentencePiece(std::string name, std::string model) : name_(std::move(name)), model_(std::move(model)) {
    const auto status = processor_.LoadFromSerializedProto(model_);
    check(!model_.empty() && status.ok(), "tokenizer", "{}: not a SentencePiece model{}{}", name_,
          status.ok() ? "" : ": ", status.ok() ? "" : status.error_message());
    pieces_ = processor_.GetPieceSize();
    surfaces_.resize(static_cast<std::size_t>(pieces_));
    byte_ids_.fill(-1);
    for (int id = 0; id < pieces_; ++id) surfaces_[static_cast<std::size_t>(id)] = surface(id);
    newline_ = processor_.PieceToId("\n");
    if (processor_.IsUnknown(newline_)) newline_ = byte_ids_['\n'];
  }

  std::string name() const override { return name_; }
  std::string model() const override { return model_; }
  std::int32_t vocab_size() const override { return pieces_ + (processor_.eos_id() < 0 ? 1 : 0); }
  std::int32_t end_of_document() const override {
    return processor_.eos_id() < 0 ? pieces_ : processor_.eos_id();
  }

  std::vector<std::int32_t> encode(std::string_view text) const override {
    std::vector<std::int32_t> out;
    while (!text.empty()) {
      // A line at a time, so that the result does not depend on how much text a caller has at hand. The line
      // feed is added by us where the model can say it, as many normalisers drop it.
      const std::size_t end = text.find('\n');
      const bool last = end == std::string_view::npos;
      if (newline_ >= 0 || last) {
        encode_line(text.substr(0, end), out);
        if (!last) out.push_back(newline_);
      } else {
        encode_line(text.substr(0, end + 1), out);
      }
      text.remove_prefix(last ? text.size() : end + 1);
    }
    return out;
  }

  // Not the library's Decode: that trims the first token's space and makes U+FFFD of bytes it sees one by
  // one.
  std::string decode(std::span<const std::int32_t> tokens) const override {
    std::string text;
    for (const std::int32_t token : tokens) {
      if (token >= 0 && token < pieces_)
        text += surfaces_[static_cast<std::size_t>(token)];
      else if (token != end_of_document())
        text += kReplacement;
    }
    return text;
  }

 private:
  std::string surface(int id) {
    const std::string& piece = processor_.IdToPiece(id);
    if (processor_.IsControl(id)) return "";
    if (processor_.IsUnknown(id)) return std::string(kReplacement);
    if (processor_.IsByte(id)) {  // "<0x0A>"
      const int byte = std::stoi(piece.substr(3, 2), nullptr, 16);
      byte_ids_[static_cast<std::size_t>(byte)] = id;
      return std::string(1, static_cast<char>(byte));
    }
    std::string text;
    for (std::string_view rest = piece; !rest.empty();) {
      const bool space = rest.starts_with(kSpaceSymbol);
      text += space ? ' ' : rest.front();
      rest.remove_prefix(space ? kSpaceSymbol.size() : 1);
    }
    return text;
  }

  // What SentencePiece would lose goes around it as bytes: text that is not UTF-8, NUL, and the symbol that
  // it uses for a space.
  void encode_line(std::string_view line, std::vector<std::int32_t>& out) const {
    if (byte_ids_[0] < 0) return encode_text(line, out);
    std::size_t begin = 0, at = 0;
    while (at < line.size()) {
      const std::string_view rest = line.substr(at);
      int length = utf8_character(rest);
      const bool direct = length <= 0 || rest.front() == '\0' || rest.starts_with(kSpaceSymbol);
      if (length <= 0) length = 1;
      if (direct) {
        encode_text(line.substr(begin, at - begin), out);
        for (const char c : rest.substr(0, static_cast<std::size_t>(length)))
          out.push_back(byte_ids_[static_cast<unsigned char>(c)]);
        begin = at + static_cast<std::size_t>(length);
      }
      at += static_cast<std::size_t>(length);
    }
    encode_text(line.substr(begin), out);
  }

  void encode_text(std::string_view text, std::vector<std::int32_t>& out) const {
    if (text.empty()) return;
    std::vector<int> ids;
    const auto status = processor_.Encode({text.data(), text.size()}, &ids);
    check(status.ok(), "tokenizer", "{}: cannot encode {} bytes: {}", name_, text.size(),
          status.error_message());
    out.insert(out.end(), ids.begin(), ids.end());
  }

  std::string name_, model_;
  sentencepiece::SentencePieceProcessor processor_;
  int pieces_ = 0;
  int newline_ = -1;  // the id that says '\n', or -1
  std::vector<std::string> surfaces_;
  std::array<int, 256> byte_ids_{};  // -1 without byte fallback
};

}  // namespace

std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name, const std::string& model) {
  constexpr std::string_view kPrefix = "sentencepiece:";
  if (name == "bytes") return std::make_unique<Bytes>();
  check(name.starts_with(kPrefix) && name.size() > kPrefix.size(), "tokenizer",
        "expected bytes or sentencepiece:MODEL, got '{}'", name);
  if (!model.empty()) return std::make_unique<SentencePiece>(name, model);
  const std::filesystem::path path = name.substr(kPrefix.size());
  std::ifstream in(path, std::ios::binary);
  check(std::filesystem::is_regular_file(path) && in.good(), "tokenizer", "{}: no such model file",
        path.string());
  return std::make_unique<SentencePiece>(name, std::string(std::istreambuf_iterator<char>(in), {}));
}

int utf8_character(std::string_view text) {
  if (text.empty()) return -1;
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  if (first < 0xC2 || first > 0xF4) return 0;
  const int length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  // The second byte's range keeps out overlong forms, surrogates and what lies past U+10FFFF.
  const unsigned char low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  const unsigned char high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  for (int i = 1; i < length; ++i) {
    if (static_cast<std::size_t>(i) == text.size()) return -1;
    const unsigned char c = byte(static_cast<std::size_t>(i));
    if (c < (i == 1 ? low : 0x80) || c > (i == 1 ? high : 0xBF)) return 0;
  }
  return length;
}

std::string Utf8Stream::push(std::string_view bytes) {
  held_ += bytes;
  std::string out;
  std::string_view rest = held_;
  while (!rest.empty()) {
    const int length = utf8_character(rest);
    if (length < 0) break;
    if (length == 0)
      out += kReplacement;
    else
      out += rest.substr(0, static_cast<std::size_t>(length));
    rest.remove_prefix(length == 0 ? 1 : static_cast<std::size_t>(length));
  }
  held_ = std::string(rest);
  return out;
}

std::string Utf8Stream::finish() {
  const bool incomplete = !held_.empty();
  held_.clear();
  return incomplete ? std::string(kReplacement) : "";
}

}  // namespace transmamba
