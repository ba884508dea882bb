// `transmamba prepare`: text to tokens.h5, in one pass and bounded memory.
//
// A file is read in blocks of whole lines, a block is cut into segments at line boundaries, segments are
// encoded by several threads and written in order. Tokenizers give the same ids however text is cut at lines,
// so the result depends neither on the block size nor on the number of threads.
#include <fmt/format.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <chrono>
#include <cmath>
#include <exception>
#include <filesystem>
#include <iostream>
#include <limits>
#include <nlohmann/json.hpp>
#include <thread>

#include "core/durable_rename.h"
#include "core/metrics.h"
#include "core/progress.h"
#include "core/text_blocks.h"
#include "core/tokenizer.h"
#include "core/tokens.h"
#include "kernels/cpu/parallel_for.h"
#include "tools/commands.h"

namespace transmamba {
namespace {

namespace fs = std::filesystem;
namespace po = boost::program_options;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kSegment = std::size_t{128} << 10;  // bytes encoded at once

struct Options {
  std::vector<std::string> inputs;
  std::string output, tokenizer;
  double validation_fraction = 0;
  int threads = 0;
};

struct Segment {
  std::string_view text;  // for .jsonl one line
  Split split;
  bool ends_document;  // after this segment
  std::int64_t line;   // of a .jsonl file, from 1
  std::vector<std::int32_t> tokens;
  std::exception_ptr error;
};

std::string text_of_json(std::string_view line, const fs::path& path, std::int64_t number) {
  try {
    const auto object = nlohmann::json::parse(line);
    const auto text = object.is_object() ? object.find("text") : object.end();
    check(text != object.end() && text->is_string(), "prepare",
          "{}:{}: expected an object with a string \"text\", got {}", path.string(), number,
          std::string(line.substr(0, std::min<std::size_t>(60, line.find_last_not_of("\r\n") + 1))));
    return text->get<std::string>();
  } catch (const nlohmann::json::exception& error) {
    fail("prepare", "{}:{}: not JSON: {}", path.string(), number, error.what());
  }
}

class Preparation {
 public:
  Preparation(const Options& options, const Tokenizer& tokenizer, const fs::path& output, std::int64_t total)
      : tokenizer_(tokenizer),
        writer_(output, tokenizer),
        threads_(options.threads),
        progress_("prepare", total) {
    if (options.validation_fraction > 0)
      validation_from_ = total - std::llround(options.validation_fraction * static_cast<double>(total));
  }

  void add(const fs::path& path) {
    const bool json = path.extension() == ".jsonl";
    TextBlocks reader(path, !json);
    std::int64_t line = 0;
    line_start_ = true;
    for (std::string_view block = reader.next(); !block.empty(); block = reader.next()) {
      std::vector<Segment> segments;
      while (!block.empty()) {
        Segment segment = json ? cut_line(block) : cut_text(block);
        segment.line = ++line;
        segments.push_back(std::move(segment));
      }
      encode(segments, json, path);
      for (const Segment& segment : segments) {
        writer_.append(segment.split, segment.tokens);
        if (segment.ends_document) writer_.end_document(segment.split);
      }
      progress_.update(done_);
    }
    writer_.end_document(split_);
  }

  void finish() {
    writer_.close();
    progress_.clear();
  }
  const TokenWriter& writer() const { return writer_; }
  std::int64_t bytes_done() const { return done_; }

 private:
  // A file's text up to the next line boundary after kSegment bytes, or to where validation begins.
  Segment cut_text(std::string_view& block) {
    if (line_start_ && done_ >= validation_from_) split_ = Split::validation;
    std::size_t size = next_line(block, kSegment);
    bool last = false;
    if (split_ == Split::train && done_ + static_cast<std::int64_t>(size) >= validation_from_) {
      size = next_line(block, static_cast<std::size_t>(std::max<std::int64_t>(1, validation_from_ - done_)));
      last = block[size - 1] == '\n';
    }
    return take(block, size, last);
  }

  Segment cut_line(std::string_view& block) {
    if (done_ >= validation_from_) split_ = Split::validation;
    return take(block, next_line(block, 1), true);
  }

  // Bytes up to and with the first line feed that makes them at least `least`.
  static std::size_t next_line(std::string_view block, std::size_t least) {
    const std::size_t newline = block.find('\n', least - 1);
    return newline == std::string_view::npos ? block.size() : newline + 1;
  }

  Segment take(std::string_view& block, std::size_t size, bool ends_document) {
    Segment segment{block.substr(0, size), split_, ends_document, 0, {}, {}};
    line_start_ = segment.text.back() == '\n';
    done_ += static_cast<std::int64_t>(size);
    block.remove_prefix(size);
    return segment;
  }

  void encode(std::vector<Segment>& segments, bool json, const fs::path& path) const {
    cpu::parallel_for(std::ssize(segments), {.threads = threads_}, [&](std::int64_t i) {
      Segment& segment = segments[static_cast<std::size_t>(i)];
      try {
        if (!json)
          segment.tokens = tokenizer_.encode(segment.text);
        else if (segment.text.find_first_not_of(" \t\r\n") != std::string_view::npos)
          segment.tokens = tokenizer_.encode(text_of_json(segment.text, path, segment.line));
      } catch (...) {
        segment.error = std::current_exception();
      }
    });
    for (const Segment& segment : segments)  // the first in the file, whichever thread met one first
      if (segment.error) std::rethrow_exception(segment.error);
  }

  const Tokenizer& tokenizer_;
  TokenWriter writer_;
  int threads_;
  Progress progress_;
  std::int64_t done_ = 0;  // bytes of all inputs
  std::int64_t validation_from_ = std::numeric_limits<std::int64_t>::max();
  Split split_ = Split::train;
  bool line_start_ = true;
};

/// A file that is removed unless it was kept.
class Temporary {
 public:
  explicit Temporary(fs::path path) : path_(std::move(path)) {}
  ~Temporary() {
    std::error_code ignored;
    if (!kept_) fs::remove(path_, ignored);
  }
  const fs::path& path() const { return path_; }
  void keep_as(const fs::path& name) {
    durable_rename(path_, name);
    kept_ = true;
  }

 private:
  fs::path path_;
  bool kept_ = false;
};

bool parse(const std::vector<std::string>& arguments, Options& options) {
  po::options_description description(
      "transmamba prepare --input FILE... --output tokens.h5\n"
      "Turns text into a token file for data.path. Each file is one document; of a .jsonl file, each line "
      "is\n"
      "one, in its \"text\" field");
  // clang-format off
  description.add_options()
      ("input,i", po::value(&options.inputs)->multitoken()->required()->value_name("FILE..."), "text files")
      ("output,o", po::value(&options.output)->required()->value_name("FILE"),
       "the token file; replaced only once the new one is complete")
      ("tokenizer,t", po::value(&options.tokenizer)->default_value("bytes"), "bytes, or sentencepiece:MODEL")
      ("validation-fraction", po::value(&options.validation_fraction)->default_value(0, "0"),
       "the last part of the input's bytes, from 0 up to but not 1, cut at a line, becomes the validation split")
      ("threads", po::value(&options.threads)->default_value(0, "all cores"), "that encode")
      ("help,h", "this text");
  // clang-format on
  try {
    po::variables_map values;
    po::store(po::command_line_parser(arguments)
                  .options(description)
                  .positional(po::positional_options_description())
                  .run(),
              values);
    if (values.count("help") != 0) {
      std::cout << description;
      return false;
    }
    po::notify(values);
  } catch (const po::error& error) {
    fail("prepare", "{} (see prepare --help)", error.what());
  }
  check(options.validation_fraction >= 0 && options.validation_fraction < 1, "prepare",
        "--validation-fraction: expected from 0 up to but not 1, got {}", options.validation_fraction);
  check(options.threads >= 0, "prepare", "--threads: expected >= 0, got {}", options.threads);
  if (options.threads == 0)
    options.threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  return true;
}

std::int64_t total_size(const Options& options) {
  std::int64_t total = 0;
  for (const std::string& input : options.inputs) {
    check(fs::is_regular_file(input), "prepare", "{}: {}", input,
          fs::exists(input) ? "expected a file, got a folder or device" : "no such file");
    std::error_code none;
    check(!fs::equivalent(input, options.output, none), "prepare", "{}: is both input and output", input);
    total += static_cast<std::int64_t>(fs::file_size(input));
  }
  check(total > 0, "prepare", "the input is empty");
  return total;
}

}  // namespace

int prepare(Process&, std::vector<std::string> arguments) {
  Options options;
  if (!parse(arguments, options)) return 0;
  const auto start = Clock::now();
  const std::int64_t total = total_size(options);
  const auto tokenizer = make_tokenizer(options.tokenizer);
  Temporary temporary(options.output + ".partial");
  Preparation preparation(options, *tokenizer, temporary.path(), total);
  for (const std::string& input : options.inputs) preparation.add(input);

  const TokenWriter& writer = preparation.writer();
  const std::int64_t train = writer.size(Split::train), validation = writer.size(Split::validation);
  check(train > 0, "prepare", "no tokens for training in {} of input", format_bytes(total));
  check(options.validation_fraction == 0 || validation > 0, "prepare",
        "--validation-fraction {}: no line begins in that part of the input", options.validation_fraction);
  preparation.finish();
  temporary.keep_as(options.output);

  const std::int64_t documents = writer.num_documents(Split::train) + writer.num_documents(Split::validation);
  const double seconds = std::max(1e-3, std::chrono::duration<double>(Clock::now() - start).count());
  const std::int64_t done = preparation.bytes_done();
  fmt::print("{}: {} documents, {} tokens", options.output, documents, train + validation);
  if (validation > 0) fmt::print(" ({} for validation)", validation);
  fmt::print(", tokenizer {} with a vocabulary of {}\n", tokenizer->name(), tokenizer->vocab_size());
  fmt::print("{} bytes read, {:.2f} bytes a token, {:.1f} s, {:.1f} MB/s\n", done,
             static_cast<double>(done) / static_cast<double>(train + validation), seconds,
             static_cast<double>(done) / seconds / 1e6);
  return 0;
}

}  // namespace transmamba
