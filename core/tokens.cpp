#include "core/tokens.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "core/megatron_tokens.h"

namespace transmamba {
namespace {

constexpr std::int64_t kFormat = 1;
constexpr std::int64_t kUint16Vocab = 65536;

std::string prefix_of(Split split) { return split == Split::train ? "" : "validation/"; }

// The first id outside [0, limit), or tokens.size(). Each token of a run comes by here.
std::size_t first_outside(std::span<const std::int32_t> tokens, std::int64_t limit) {
  const auto largest = static_cast<std::uint32_t>(limit - 1);
  std::uint32_t highest = 0;
  for (const std::int32_t token : tokens) highest = std::max(highest, static_cast<std::uint32_t>(token));
  if (highest <= largest) return tokens.size();
  const auto bad = std::find_if(tokens.begin(), tokens.end(), [&](std::int32_t token) {
    return static_cast<std::uint32_t>(token) > largest;
  });
  return static_cast<std::size_t>(bad - tokens.begin());
}

class Hdf5Tokens final : public TokenDataset {
 public:
  Hdf5Tokens(const std::filesystem::path& path, Split split)
      : file_(Hdf5File::open(path)), name_(prefix_of(split) + "tokens") {
    path_ = path;
    check(file_.has("tokens") && file_.has_attribute("format_version"), "data",
          "{}: not a token file: no dataset 'tokens' or no attribute 'format_version'", path.string());
    const auto format = file_.attribute<std::int64_t>("format_version");
    check(format == kFormat, "data", "{}: expected format version {}, got {}", path.string(),
          std::int64_t{kFormat}, format);
    has_validation_ = file_.has("validation/tokens");
    check(split == Split::train || has_validation_, "data",
          "{}: no validation split (prepare makes one with "
          "--validation-fraction)",
          path.string());
    tokenizer_ = file_.attribute<std::string>("tokenizer");
    vocab_size_ = file_.attribute<std::int64_t>("vocab_size");
    const auto end = file_.attribute<std::int64_t>("end_of_document");
    check(vocab_size_ > 0 && vocab_size_ <= std::numeric_limits<std::int32_t>::max() && end >= -1 &&
              end < vocab_size_,
          "data", "{}: expected an end_of_document inside the vocabulary, got {} of {}", path.string(), end,
          vocab_size_);
    end_of_document_ = static_cast<std::int32_t>(end);
    limit_ = vocab_size_;
    if (file_.has("tokenizer_model")) {
      const auto bytes = file_.read_vector<std::uint8_t>("tokenizer_model");
      tokenizer_model_.assign(bytes.begin(), bytes.end());
    }
    const std::string type = file_.element_type(name_);
    check(type == "uint16" || type == "uint32", "data", "{}: {}: expected uint16 or uint32, got {}",
          path.string(), name_, type);
    size_ = length(name_);
    check(size_ > 0, "data", "{}: {}: no tokens", path.string(), name_);
    check_documents(prefix_of(split) + "document_offsets");
  }

 protected:
  void fetch(std::int64_t begin, std::span<std::int32_t> out) const override {
    file_.read(name_, begin, out);
  }

 private:
  std::int64_t length(const std::string& name) const {
    const auto shape = file_.shape(name);
    check(shape.size() == 1, "data", "{}: {}: expected 1 dim, got {}", path_.string(), name, shape.size());
    return shape[0];
  }

  void check_documents(const std::string& name) {
    const std::int64_t count = length(name);
    std::vector<std::int64_t> block;
    std::int64_t last = 0;
    for (std::int64_t at = 0; at < count; at += std::ssize(block)) {
      block.resize(static_cast<std::size_t>(std::min<std::int64_t>(65536, count - at)));
      file_.read<std::int64_t>(name, at, block);
      check(at > 0 || block[0] == 0, "data", "{}: {}: expected it to begin with 0, got {}", path_.string(),
            name, block[0]);
      for (const std::int64_t offset : block) {
        check(offset >= last, "data", "{}: {}: expected rising offsets, got {} after {}", path_.string(),
              name, offset, last);
        last = offset;
      }
    }
    check(count >= 2 && last == size_, "data", "{}: {}: expected {} offsets to end at {} tokens, got {}",
          path_.string(), name, count, size_, last);
    num_documents_ = count - 1;
  }

  Hdf5File file_;
  std::string name_;
};

}  // namespace

std::unique_ptr<TokenDataset> TokenDataset::open(const std::filesystem::path& path, Split split) {
  namespace fs = std::filesystem;
  const bool whole = fs::is_regular_file(path);
  const std::string extension = path.extension().string();
  fs::path prefix = path;
  if (extension == ".bin" || extension == ".idx") prefix.replace_extension();
  const auto part = [&](const char* suffix) { return fs::is_regular_file(prefix.string() + suffix); };
  if (prefix != path || (!whole && (part(".idx") || part(".bin")))) {
    check(part(".idx") && part(".bin"), "data", "{}: expected {}.idx and {}.bin, got {}", path.string(),
          prefix.string(), prefix.string(),
          part(".idx")   ? "the .idx only"
          : part(".bin") ? "the .bin only"
                         : "neither");
    check(split == Split::train, "data", "{}: Megatron's files have no validation split", path.string());
    return open_megatron(prefix);
  }
  check(whole, "data", "{}: no such file: expected a tokens.h5 of prepare, or Megatron's .bin and .idx",
        path.string());
  return std::make_unique<Hdf5Tokens>(path, split);
}

void TokenDataset::read(std::int64_t begin, std::span<std::int32_t> out) const {
  check(begin >= 0 && std::ssize(out) <= size_ - begin, "data",
        "{}: expected a run inside {} tokens, got [{}, {})", path_.string(), size_, begin,
        begin + std::ssize(out));
  if (out.empty()) return;
  fetch(begin, out);
  const std::int64_t limit = limit_ > 0 ? limit_ : std::int64_t{1} << 31;
  if (const auto bad = first_outside(out, limit); bad < out.size())
    fail("data", "{}: token {}: expected an id below {}, got {}", path_.string(),
         begin + static_cast<std::int64_t>(bad), limit, out[bad]);
}

// ---- writing

TokenWriter::TokenWriter(const std::filesystem::path& path, const Tokenizer& tokenizer)
    : file_(Hdf5File::create(path)),
      vocab_size_(tokenizer.vocab_size()),
      end_of_document_(tokenizer.end_of_document()) {
  file_.set_attribute("format_version", kFormat);
  file_.set_attribute("tokenizer", tokenizer.name());
  file_.set_attribute("vocab_size", vocab_size_);
  file_.set_attribute("end_of_document", std::int64_t{end_of_document_});
  if (const std::string model = tokenizer.model(); !model.empty())
    file_.write("tokenizer_model", std::vector<std::uint8_t>(model.begin(), model.end()));
  parts_[1].group = prefix_of(Split::validation);
  make(parts_[0]);
}

void TokenWriter::make(Part& part) {
  if (vocab_size_ <= kUint16Vocab)
    file_.create_appendable<std::uint16_t>(part.group + "tokens");
  else
    file_.create_appendable<std::uint32_t>(part.group + "tokens");
  file_.create_appendable<std::int64_t>(part.group + "document_offsets");
  const std::int64_t first = 0;
  file_.append<std::int64_t>(part.group + "document_offsets", {&first, 1});
  part.made = true;
}

void TokenWriter::append(Split split, std::span<const std::int32_t> tokens) {
  Part& part = parts_[static_cast<int>(split)];
  if (!part.made) make(part);
  if (const auto bad = first_outside(tokens, vocab_size_); bad < tokens.size())
    fail("data", "{}: expected token ids below {}, got {}", file_.path().string(), vocab_size_, tokens[bad]);
  if (vocab_size_ <= kUint16Vocab) {
    narrow_.assign(tokens.begin(), tokens.end());
    file_.append<std::uint16_t>(part.group + "tokens", narrow_);
  } else {
    // The ids are not negative, so both types have the same bytes.
    file_.append<std::uint32_t>(part.group + "tokens",
                                {reinterpret_cast<const std::uint32_t*>(tokens.data()), tokens.size()});
  }
  part.size += std::ssize(tokens);
}

void TokenWriter::end_document(Split split) {
  Part& part = parts_[static_cast<int>(split)];
  if (part.size == part.start) return;
  append(split, {&end_of_document_, 1});
  file_.append<std::int64_t>(part.group + "document_offsets", {&part.size, 1});
  part.start = part.size;
  ++part.num_documents;
}

void TokenWriter::close() {
  end_document(Split::train);
  end_document(Split::validation);
  file_.close();
}

}  // namespace transmamba
