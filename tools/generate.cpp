// transmamba generate: writes text, token by token: a KV cache before each TransPoint, one state after it.
#include <fmt/core.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <chrono>
#include <cmath>
#include <numeric>
#include <sstream>

#include "core/random.h"
#include "core/tokenizer.h"
#include "core/transpoint.h"
#include "kernels/dispatch.h"
#include "kernels/elementwise.h"
#include "launch/session.h"
#include "parallel/checkpoint.h"
#include "parallel/model.h"
#include "tools/commands.h"

namespace transmamba {
namespace {

namespace po = boost::program_options;

struct Sampling {
  double temperature = 1;  // 0: the most likely token
  std::int64_t top_k = 0;  // 0: all
  std::int64_t seed = 0;
};

/// Draws the `index`-th token from one row of logits.
template <class T>
std::int32_t draw(const T* logits, std::int64_t vocab, const Sampling& s, std::uint64_t index) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(vocab));
  std::iota(ids.begin(), ids.end(), 0);
  const auto more_likely = [&](std::int32_t a, std::int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  const std::int64_t keep = s.temperature <= 0 ? 1 : s.top_k > 0 ? std::min(s.top_k, vocab) : vocab;
  std::partial_sort(ids.begin(), ids.begin() + keep, ids.end(), more_likely);
  if (keep == 1) return ids[0];
  std::vector<double> cumulative;
  double sum = 0;
  for (std::int64_t i = 0; i < keep; ++i)
    cumulative.push_back(sum += std::exp((static_cast<double>(logits[ids[static_cast<std::size_t>(i)]]) -
                                          static_cast<double>(logits[ids[0]])) /
                                         s.temperature));
  const double at = sum * uniform(static_cast<std::uint64_t>(s.seed), stream_of("generate"), index);
  const auto chosen = std::upper_bound(cumulative.begin(), cumulative.end() - 1, at) - cumulative.begin();
  return ids[static_cast<std::size_t>(chosen)];
}

/// From logits (1, t, V) on the device, of the last token.
std::int32_t draw(const Context& context, const Tensor& logits, const Sampling& s, std::uint64_t index) {
  const Tensor row = to_host(context, logits.slice(1, logits.dim(1) - 1, logits.dim(1)));
  const Tensor wide = context.empty_host(row.shape(), statistics_of(row.dtype()));
  copy({.x = row, .y = wide}, Stream());
  std::int32_t token = 0;
  with_float(wide.dtype(), "generate",
             [&](auto type) { token = draw(wide.ptr<decltype(type)>(), wide.dim(2), s, index); });
  return token;
}

Tensor as_batch(const Context& context, std::span<const std::int32_t> ids) {
  const Tensor tokens = context.empty_host({1, static_cast<std::int64_t>(ids.size())}, DType::i32);
  std::copy(ids.begin(), ids.end(), tokens.ptr<std::int32_t>());
  return to_device(context, tokens);
}

void show(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

std::filesystem::path find_checkpoint(const std::filesystem::path& path) {
  if (std::filesystem::exists(path / "index.h5")) return path;
  const auto steps = list_checkpoints(path);
  return steps.empty() ? path : steps[0];
}

}  // namespace

int generate(Process& process, std::vector<std::string> arguments) {
  std::string folder, prompt, tokenizer_name;
  std::int64_t count = 0;
  Sampling sampling;
  po::options_description options(
      "usage: transmamba generate --checkpoint DIR --prompt TEXT --tokens N [option ...]", 100);
  options.add_options()                                                                                     //
      ("checkpoint", po::value(&folder)->required(), "a checkpoint, or a folder of them: then the newest")  //
      ("prompt", po::value(&prompt)->required(), "text to go on from")                                      //
      ("tokens", po::value(&count)->required(), "how many tokens to write")                                 //
      ("temperature", po::value(&sampling.temperature)->default_value(1),
       "0 always takes the most likely token")  //
      ("top-k", po::value(&sampling.top_k)->default_value(0),
       "draw from the k most likely tokens; 0: from all")                    //
      ("seed", po::value(&sampling.seed)->default_value(0), "of the draws")  //
      ("tokenizer", po::value(&tokenizer_name),
       "bytes or sentencepiece:MODEL, where the training data did not say")  //
      ("section.key",
       "any key of the configuration, e.g. --model.transpoints V3: another schedule than the trained one");
  if (arguments.empty() || std::any_of(arguments.begin(), arguments.end(), is_help))
    return print_usage(process, fmt::format("{}", (std::ostringstream() << options).str()), arguments);
  std::vector<std::string> overrides;
  try {
    po::variables_map map;
    const auto style = po::command_line_style::unix_style & ~po::command_line_style::allow_guessing;
    // Words with a dot are keys of the configuration.
    std::vector<std::string> own;
    for (std::size_t i = 0; i < arguments.size(); ++i) {
      const bool key = arguments[i].starts_with("--") &&
                       arguments[i].substr(0, arguments[i].find('=')).find('.') != std::string::npos;
      auto& list = key ? overrides : own;
      list.push_back(arguments[i]);
      const bool takes_next = arguments[i].starts_with("--") && arguments[i].find('=') == std::string::npos &&
                              i + 1 < arguments.size();
      if (takes_next) list.push_back(arguments[++i]);
    }
    const po::positional_options_description none;  // without it Boost ignores words that are no options
    po::store(po::command_line_parser(own).options(options).style(style).positional(none).run(), map);
    po::notify(map);
  } catch (const po::error& error) {
    fail("generate", "{}; `transmamba generate --help` lists the options", error.what());
  }
  check(count > 0, "generate", "--tokens: expected a positive number, got {}", count);
  check(sampling.temperature >= 0 && sampling.top_k >= 0, "generate",
        "--temperature and --top-k: expected numbers >= 0, got {} and {}", sampling.temperature,
        sampling.top_k);

  const Checkpoint checkpoint(find_checkpoint(folder));
  Config trained;  // of the run that wrote it only what concerns the model: this may be another machine
  trained.model = checkpoint.config().model;
  trained.train.seq_len = checkpoint.config().train.seq_len;
  // Of a bfloat16 run the checkpoint has the float32 weights, which any device computes with.
  const std::string& dtype = checkpoint.config().train.dtype;
  trained.train.dtype = dtype == "bfloat16" ? "float32" : dtype;
  const Config config = parse_config_text(trained.to_ini(), checkpoint.folder().string(), overrides);
  check_same_model(trained.model, config.model, checkpoint.folder().string());
  TokenizerSource source = checkpoint.tokenizer();
  if (!tokenizer_name.empty()) source = {tokenizer_name, ""};
  check(!source.name.empty(), "generate",
        "{}: its training data did not name a tokenizer, so --tokenizer must", checkpoint.folder().string());
  const auto tokenizer = make_tokenizer(source.name, source.model);
  check(tokenizer->vocab_size() <= config.model.vocab_size, "generate",
        "--tokenizer {}: expected at most the model's {} token ids, got {}", source.name,
        config.model.vocab_size, tokenizer->vocab_size());
  std::vector<std::int32_t> ids = tokenizer->encode(prompt);
  if (ids.empty()) ids.push_back(tokenizer->end_of_document());  // where every document begins
  const auto total = static_cast<std::int64_t>(ids.size()) + count;

  Session session(config.train, process);
  const Context& context = session.context();
  const std::int64_t length = std::max(total, config.train.seq_len);
  Model model(config.model, resolve_transpoints(config.model, config.train.seq_len, length), context);
  checkpoint.load_parameters(model.parameters());

  Model::Cache cache(context, model, 1, total);
  Utf8Stream text;
  show(prompt);
  Tensor logits = model.decode(context, as_batch(context, ids), cache);
  const auto start = std::chrono::steady_clock::now();
  std::int64_t written = 0;
  while (written < count) {
    ids.push_back(draw(context, logits, sampling, static_cast<std::uint64_t>(written++)));
    if (ids.back() == tokenizer->end_of_document()) break;
    show(text.push(tokenizer->decode({&ids.back(), 1})));
    if (written < count) logits = model.decode(context, as_batch(context, {&ids.back(), 1}), cache);
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  show(text.finish() + "\n");
  fmt::print(stderr, "{} tokens{}, {:.0f} tokens/s, from {}\n", written,
             written < count ? " up to the end of the document" : "", static_cast<double>(written) / seconds,
             checkpoint.folder().string());
  return 0;
}

}  // namespace transmamba
