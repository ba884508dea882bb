#include "core/config_keys.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <numeric>
#include <utility>

namespace transmamba {
namespace {

constexpr std::int64_t kCount =
    std::numeric_limits<std::int32_t>::max();  // tokens are int32, and products of two sizes fit in 64 bits
constexpr std::int64_t kWidth = 1 << 20;       // widths: the search for divisors stays short
constexpr std::int64_t kAny = std::numeric_limits<std::int64_t>::max();
constexpr double kUnbounded = std::numeric_limits<double>::infinity();

template <class T>
bool parse_number(const std::string& text, T& out) {
  T value{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end) return false;
  if constexpr (std::is_floating_point_v<T>)
    if (!std::isfinite(value)) return false;
  out = value;
  return true;
}

bool parse_bool(const std::string& text, bool& out) {
  const auto is_one_of = [&](std::initializer_list<std::string_view> words) {
    return std::find(words.begin(), words.end(), text) != words.end();
  };
  if (is_one_of({"true", "on", "yes", "1"})) return out = true, true;
  if (is_one_of({"false", "off", "no", "0"})) return out = false, true;
  return false;
}

/// A value has to survive to_ini(), and an INI line ends at a comment and loses its outer blanks.
bool survives_ini(const std::string& text) {
  const std::string blanks = " \t";
  return text.find_first_of("#;\r\n") == std::string::npos &&
         (text.empty() ||
          (blanks.find(text.front()) == std::string::npos && blanks.find(text.back()) == std::string::npos));
}

template <class Member>
ConfigKey integer(const char* name, Member member, std::int64_t low, std::int64_t high, const char* help) {
  ConfigKey key{name, help, "", {}, {}, {}};
  key.allowed = high == kAny ? fmt::format("an integer of at least {}", low)
                             : fmt::format("an integer from {} to {}", low, high);
  key.assign = [=](Config& c, const std::string& text) { return parse_number(text, member(c)); };
  key.within = [=](const Config& c) { return low <= member(c) && member(c) <= high; };
  key.print = [=](const Config& c) { return fmt::format("{}", member(c)); };
  return key;
}

/// Reals from low to high; `open` says which ends are themselves not allowed, as in mathematics: "()" both.
template <class Member>
ConfigKey real(const char* name, Member member, double low, double high, std::string_view open,
               const char* help) {
  ConfigKey key{name, help, "", {}, {}, {}};
  const bool open_low = open.front() == '(', open_high = open.back() == ')';
  key.allowed = fmt::format("a finite number {} {}", open_low ? "above" : "of at least", low);
  if (high != kUnbounded) key.allowed += fmt::format(" and {} {}", open_high ? "below" : "at most", high);
  key.assign = [=](Config& c, const std::string& text) { return parse_number(text, member(c)); };
  key.within = [=](const Config& c) {
    const double x = member(c);
    return std::isfinite(x) && (open_low ? x > low : x >= low) && (open_high ? x < high : x <= high);
  };
  key.print = [=](const Config& c) { return fmt::format("{}", member(c)); };
  return key;
}

template <class Member>
ConfigKey boolean(const char* name, Member member, const char* help) {
  ConfigKey key{name, help, "true or false", {}, {}, {}};
  key.assign = [=](Config& c, const std::string& text) { return parse_bool(text, member(c)); };
  key.within = [](const Config&) { return true; };
  key.print = [=](const Config& c) { return member(c) ? "true" : "false"; };
  return key;
}

template <class Member>
ConfigKey choice(const char* name, Member member, std::vector<std::string> choices, const char* help) {
  ConfigKey key{name, help, fmt::format("one of {}", fmt::join(choices, ", ")), {}, {}, {}};
  key.assign = [=](Config& c, const std::string& text) { return member(c) = text, true; };
  key.within = [=](const Config& c) {
    return std::find(choices.begin(), choices.end(), member(c)) != choices.end();
  };
  key.print = [=](const Config& c) { return member(c); };
  return key;
}

bool anything(const std::string&) { return true; }
bool is_pattern(const std::string& text) {
  return !text.empty() && text.find_first_not_of("T-") == std::string::npos;
}
bool is_something(const std::string& text) { return !text.empty(); }

/// Free text or a path, with what it must be beyond surviving an INI file.
template <class Member>
ConfigKey text(const char* name, Member member, bool (*accepts)(const std::string&), const char* allowed,
               const char* help) {
  ConfigKey key{name, help, fmt::format("{} (no #, no ;, no blanks around it)", allowed), {}, {}, {}};
  key.assign = [=](Config& c, const std::string& value) { return member(c) = value, true; };
  key.print = [=](const Config& c) -> std::string { return member(c); };
  key.within = [=, print = key.print](const Config& c) {
    const std::string value = print(c);
    return survives_ini(value) && accepts(value);
  };
  return key;
}

// A key is the member's own path, so that the two cannot drift apart.
#define MEMBER(path) \
#path, [](auto& c) -> auto& { return c.path; }

std::vector<ConfigKey> make_keys() {
  return {
      integer(MEMBER(model.vocab_size), 0, kCount, "vocabulary size; 0: the tokenizer's, from the data file"),
      integer(MEMBER(model.hidden_size), 1, kWidth, "width of the residual stream"),
      integer(MEMBER(model.num_layers), 1, 65536,
              "mixers and MLPs together, each with its norm and residual"),
      text(MEMBER(model.layer_pattern), is_pattern, "letters T and -",
           "cycled over the layers: T a TransMamba mixer, - an MLP"),
      integer(MEMBER(model.num_heads), 1, kWidth, "heads of a mixer"),
      integer(MEMBER(model.qk_head_dim), 0, kWidth,
              "query/key width of a head, even, also the SSM's state size; 0: hidden_size / num_heads"),
      integer(MEMBER(model.v_head_dim), 0, kWidth, "value width of a head; 0: hidden_size / num_heads"),
      integer(MEMBER(model.ffn_hidden_size), 0, kWidth,
              "width of an MLP; 0: 8/3 hidden_size rounded up to a multiple of 64"),
      integer(MEMBER(model.conv_width), 1, 256, "taps of the causal convolution on Q, K and V"),
      text(MEMBER(model.transpoints), is_something, "a schedule",
           "V1 .. V9, transformer, mamba, hybrid, or numbers and T with commas between; cycled over the "
           "mixers"),
      choice(MEMBER(model.transpoint_unit), {"token", "fraction"},
             "token: TransPoints count tokens; fraction: they are parts of seq_len"),
      choice(MEMBER(model.gate), {"ssm", "all", "none"}, "which tokens SiLU(z) gates"),
      boolean(MEMBER(model.memory_converter), "off: the SSM starts from zero at the TransPoint (ablation)"),
      real(MEMBER(model.rope_theta), 0, kUnbounded, "()", "base of the rotary embedding"),
      real(MEMBER(model.norm_eps), 0, kUnbounded, "[)", "added to the mean square in every RMSNorm"),
      boolean(MEMBER(model.tie_embeddings), "the head reads the embedding's matrix"),
      real(MEMBER(model.init_std), 0, kUnbounded, "[)", "standard deviation of initial matrices"),

      text(MEMBER(data.path), anything, "a path", "tokens.h5 of `prepare`, or a Megatron .bin/.idx pair"),
      text(MEMBER(data.validation_path), anything, "a path",
           "validation tokens; empty: the validation split inside data.path, where there is one"),

      integer(MEMBER(train.seq_len), 1, kCount, "tokens a sequence, T"),
      integer(MEMBER(train.micro_batch), 1, kCount, "sequences a forward pass"),
      integer(MEMBER(train.global_batch), 1, kCount, "sequences a step, a multiple of micro_batch"),
      integer(MEMBER(train.steps), 1, kAny, "optimizer steps of the run"),
      integer(MEMBER(train.seed), 0, kAny, "of initial values and sample order"),
      choice(MEMBER(train.dtype), {"float32", "float64", "bfloat16"},
             "type of matrices and activations; bfloat16: with float32 master weights, cuda only"),
      choice(MEMBER(train.device), {"cpu", "cuda"}, "where kernels run"),
      boolean(
          MEMBER(train.cuda_graphs),
          "on one GPU: a micro-batch's kernels are captured once and then started all at once; same bits"),
      boolean(MEMBER(train.deterministic),
              "off: kernels may add in any order where that is faster (attention's backward pass on a GPU)"),
      choice(MEMBER(train.recompute), {"none", "selective", "full"},
             "what backward computes again instead of keeping it; selective: norms' outputs, convolved q, k, "
             "v, SwiGLU's output; full: all but each layer's input"),
      choice(MEMBER(train.bind), {"auto", "none"},
             "auto: a rank on a GPU keeps to the cores near it, unless its launcher chose others"),
      integer(MEMBER(train.threads), 0, 1024, "cores this rank uses; 0: all it may"),
      integer(MEMBER(train.validate_every), 0, kAny, "steps between validations; 0: only at the end"),
      integer(MEMBER(train.validate_sequences), 1, kCount, "validation sequences, at most"),
      integer(MEMBER(train.max_skipped), 0, kAny,
              "steps in a row that are skipped, as their loss or gradient is not finite or a spike; one more "
              "ends the run"),
      real(MEMBER(train.spike_guard), 0, kUnbounded, "[)",
           "a step is skipped whose loss is above this many times the mean of recent ones; 0: none is"),
      integer(MEMBER(train.max_restarts), 0, kAny,
              "how often `transmamba launch` starts the run again after a crash, from its newest checkpoint"),
      integer(MEMBER(train.stall_timeout), 0, kAny,
              "seconds, and no less than twice parallel.timeout, in which a rank has to read the next "
              "micro-batch, "
              "validate or save, or it ends the run; 0: it need not"),

      integer(MEMBER(parallel.tp), 1, kWidth, "tensor parallel ranks: they share heads, MLPs and vocabulary"),
      integer(MEMBER(parallel.cp), 1, kWidth, "context parallel ranks: they share the sequence"),
      integer(MEMBER(parallel.pp), 1, kWidth, "pipeline parallel ranks: they share the layers"),
      integer(MEMBER(parallel.dp), 0, kWidth,
              "data parallel ranks: they share the batch; 0: ranks / (tp cp pp)"),
      choice(MEMBER(parallel.cp_layout), {"contiguous", "zigzag", "striped", "balanced"},
             "how the sequence is dealt to cp ranks; balanced: by what a token costs at its position"),
      integer(MEMBER(parallel.cp_chunk), 0, kCount,
              "tokens of a stripe of cp_layout = striped; 0: seq_len / (8 cp)"),
      integer(MEMBER(parallel.virtual_stages), 1, 65536,
              "model chunks a pipeline rank; above 1: interleaved 1F1B"),
      boolean(MEMBER(parallel.copy_engines),
              "tp's tokens, cp's states, pp's activations and the sums of gradients go by copy engines where "
              "all GPUs of the group are on one host, and by NCCL's kernels elsewhere; false: all by NCCL"),
      real(MEMBER(parallel.bucket_mb), 0, 65536, "(]",
           "MiB of gradients in one reduce-scatter, which runs beside the backward pass"),
      text(MEMBER(parallel.machine), anything, "a path",
           "what `bench --quick` measured; empty: built-in numbers. Used to balance layouts and stages"),
      integer(MEMBER(parallel.timeout), 1, 1 << 20,
              "seconds that a rank waits for the others in one call before it ends the run"),

      real(MEMBER(optimizer.lr), 0, kUnbounded, "[)", "largest learning rate"),
      real(MEMBER(optimizer.min_lr), 0, kUnbounded, "[)", "learning rate of the last step"),
      integer(MEMBER(optimizer.warmup_steps), 0, kAny, "steps of linear warm-up"),
      real(MEMBER(optimizer.beta1), 0, 1, "[)", "decay of AdamW's first moment"),
      real(MEMBER(optimizer.beta2), 0, 1, "[)", "decay of AdamW's second moment"),
      real(MEMBER(optimizer.eps), 0, kUnbounded, "()", "added to the root of the second moment"),
      real(MEMBER(optimizer.weight_decay), 0, kUnbounded, "[)",
           "of matrices only: projections, embedding, head"),
      real(MEMBER(optimizer.clip_grad), 0, kUnbounded, "()",
           "largest global gradient norm; 1e30: no clipping"),

      text(MEMBER(checkpoint.path), anything, "a path",
           "folder that gets a folder a step; empty: no checkpoints"),
      integer(MEMBER(checkpoint.every), 0, kAny, "steps between checkpoints; 0: only at the end"),
      integer(MEMBER(checkpoint.keep), 0, kAny, "newest checkpoints kept; 0: all"),
      text(MEMBER(checkpoint.resume), is_something, "none, auto or a path",
           "none, auto (the newest whole one in checkpoint.path, if any) or a checkpoint folder"),
      boolean(MEMBER(checkpoint.async),
              "written while training goes on, from a copy in host memory; off: training waits"),

      text(MEMBER(log.metrics), anything, "a path",
           "file of one JSON object a step; empty: metrics.jsonl in checkpoint.path, or none"),
      integer(MEMBER(log.every), 1, kAny, "steps between lines"),
      text(MEMBER(log.communication), anything, "a path",
           "calls, bytes and seconds of all communication as JSON; empty: communication.json in "
           "checkpoint.path, or none"),
      integer(MEMBER(log.communication_skip), 0, kAny,
              "steps at the start of a run that this table leaves out, as they warm up"),
      integer(MEMBER(log.profile), 0, kCount,
              "steps, after the first 3 of the run, whose computing and communication are measured; also "
              "--profile"),
      text(
          MEMBER(log.profile_path), anything, "a path",
          "folder of profile.json and trace.json (for Perfetto or chrome://tracing); empty: checkpoint.path, "
          "or none"),

      choice(MEMBER(fault.kind), {"none", "kill", "stop", "hang", "nan", "slow", "disk_full", "flipped_byte"},
             "for tests: what goes wrong on fault.rank in fault.step"),
      integer(MEMBER(fault.step), 1, kAny, "for tests: the first step in which it does"),
      integer(MEMBER(fault.steps), 1, kAny, "for tests: in how many"),
      integer(MEMBER(fault.rank), 0, kCount, "for tests: on which rank"),
      real(MEMBER(fault.seconds), 0, 86400, "[)", "for tests: what a slow rank loses in each step"),
  };
}
#undef MEMBER

/// Levenshtein's: insertions, deletions and replacements.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

const std::vector<ConfigKey>& config_keys() {
  static const std::vector<ConfigKey> keys = make_keys();
  return keys;
}

const ConfigKey* find_config_key(std::string_view name) {
  const auto& keys = config_keys();
  const auto found =
      std::find_if(keys.begin(), keys.end(), [&](const auto& key) { return key.name == name; });
  return found == keys.end() ? nullptr : &*found;
}

std::string suggest_config_key(std::string_view name) {
  const std::size_t dot = name.find('.');
  const std::string_view section = dot == std::string_view::npos ? "" : name.substr(0, dot);
  const std::string_view word = dot == std::string_view::npos ? name : name.substr(dot + 1);
  // The right word in the wrong section, or in none, is one mistake, however different the sections' names.
  const auto distance = [&](const ConfigKey& key) {
    return std::min(edit_distance(name, key.name), edit_distance(word, key.key()) + 1);
  };
  const ConfigKey* nearest = nullptr;
  std::vector<std::string_view> in_section, sections;
  for (const ConfigKey& key : config_keys()) {
    if (!nearest || distance(key) < distance(*nearest)) nearest = &key;
    if (key.section() == section) in_section.push_back(key.key());
    if (sections.empty() || sections.back() != key.section()) sections.push_back(key.section());
  }
  if (in_section.empty())
    return fmt::format("the nearest is {}; sections are {}", nearest->name, fmt::join(sections, ", "));
  return fmt::format("the nearest is {}; section {} has {}", nearest->name, section,
                     fmt::join(in_section, ", "));
}

}  // namespace transmamba
