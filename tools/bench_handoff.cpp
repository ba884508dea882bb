// transmamba bench handoff: what passing SSM states between context ranks takes, beside the layer that they
// are for, and beside the other way to share a sequence: each rank gives the other heads of its tokens for
// the other tokens of its heads, and back (all-to-all; Jacobs et al., 2023, "DeepSpeed Ulysses").
#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <cstring>

#include "kernels/elementwise.h"
#include "launch/measure.h"
#include "launch/session.h"
#include "parallel/context/state_handoff.h"
#include "parallel/layers/mixer.h"
#include "tools/commands.h"

namespace transmamba {
namespace {

constexpr auto kWhere = "bench handoff";

constexpr auto kUsage =
    "usage: mpirun -np RANKS transmamba bench handoff [CONFIG] [--seconds N] [--section.key value ...]\n\n"
    "All ranks share each sequence (cp), in contiguous runs. Times, forward, for a mixer of the model with "
    "its\n"
    "TransPoint at 0: handing the SSM's states from rank to rank, as training does; exchanging activations "
    "so\n"
    "that each rank has all tokens of some heads, and their results back; and the whole layer. That "
    "exchange\n"
    "is first made on integers and compared, exactly.\n\n"
    "  --seconds N      how long to time each, about (default 1)\n"
    "  --section.key    e.g. --train.seq_len 131072 --train.micro_batch 1 --train.device cuda\n";

struct Options {
  double seconds = 1;
  Config config;
};

Options parse(std::vector<std::string> arguments) {
  Options options;
  std::string file;
  std::vector<std::string> overrides;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    if (i == 0 && !word.starts_with("--")) {
      file = word;
      continue;
    }
    check(i + 1 < arguments.size(), kWhere, "{} needs a value", word);
    const std::string& value = arguments[++i];
    if (word == "--seconds") {
      const char* end = value.data() + value.size();
      const auto [stop, error] = std::from_chars(value.data(), end, options.seconds);
      check(error == std::errc() && stop == end && options.seconds > 0 && options.seconds <= 3600, kWhere,
            "--seconds: expected a number above 0 and at most 3600, got \"{}\"", value);
    } else {
      overrides.insert(overrides.end(), {word, value});
    }
  }
  options.config = parse_config(file, overrides);
  if (options.config.model.vocab_size == 0) options.config.model.vocab_size = 256;
  return options;
}

/// Between (b, t, h, w), this rank's tokens, and (b, cp t, h / cp, w), its heads.
class HeadExchange {
 public:
  HeadExchange(const Context& context, Communicator& cp) : context_(context), cp_(cp) {}

  void to_heads(const ConstView& tokens, const View& heads) const {
    move(
        tokens, heads, [&](int rank) { return heads_of(tokens, rank); },
        [&](int rank) { return tokens_of(heads, rank); });
  }
  void to_tokens(const ConstView& heads, const View& tokens) const {
    move(
        heads, tokens, [&](int rank) { return tokens_of(heads, rank); },
        [&](int rank) { return heads_of(tokens, rank); });
  }

 private:
  template <class V>
  V heads_of(const V& x, int rank) const {
    const std::int64_t each = x.dim(2) / cp_.size();
    return x.slice(2, rank * each, (rank + 1) * each);
  }
  template <class V>
  V tokens_of(const V& x, int rank) const {
    const std::int64_t each = x.dim(1) / cp_.size();
    return x.slice(1, rank * each, (rank + 1) * each);
  }
  /// part(r) of `in` goes to rank r, whose part for this rank comes to place(r) of `out`.
  template <class Part, class Place>
  void move(const ConstView& in, const View& out, Part&& part, Place&& place) const {
    std::vector<Tensor> sent, received;
    std::vector<Outgoing> outgoing;
    std::vector<Incoming> incoming;
    for (int rank = 0; rank < cp_.size(); ++rank) {
      if (rank == cp_.rank()) continue;
      sent.push_back(context_.empty(part(rank).shape(), in.dtype()));
      received.push_back(context_.empty(place(rank).shape(), out.dtype()));
      copy({.x = part(rank), .y = sent.back()}, context_.stream);
      outgoing.push_back({rank, sent.back()}), incoming.push_back({rank, received.back()});
    }
    Pending pending = cp_.start_exchange("heads for tokens", outgoing, incoming);
    copy({.x = part(cp_.rank()), .y = place(cp_.rank())}, context_.stream);
    pending.wait();
    for (std::size_t i = 0; i < incoming.size(); ++i)
      copy({.x = received[i], .y = place(incoming[i].peer)}, context_.stream);
  }
  const Context& context_;
  Communicator& cp_;
};

/// A mixer's activations on this rank, and the same by heads.
struct Activations {
  Tensor qkv, dt, y, qkv_of_heads, dt_of_heads, y_of_heads;
  Activations(const Context& context, const ModelConfig& m, std::int64_t b, std::int64_t t, std::int64_t cp)
      : qkv(context.empty({b, t, m.num_heads, 2 * m.qk_head_dim + m.v_head_dim})),
        dt(context.empty({b, t, m.num_heads, 1}, context.statistics())),
        y(context.empty({b, t, m.num_heads, m.v_head_dim})),
        qkv_of_heads(context.empty({b, t * cp, m.num_heads / cp, qkv.dim(3)})),
        dt_of_heads(context.empty({b, t * cp, m.num_heads / cp, 1}, context.statistics())),
        y_of_heads(context.empty({b, t * cp, m.num_heads / cp, m.v_head_dim})) {}
};

/// Element (b, token, head, i) is a small integer of the token in the whole sequence and the head.
Tensor numbered(const Context& context, const Tensor& like, std::int64_t token, std::int64_t head) {
  const Tensor host = context.empty_host(like.shape(), DType::f32);
  const Shape& s = like.shape();
  for (std::int64_t b = 0; b < s[0]; ++b)
    for (std::int64_t t = 0; t < s[1]; ++t)
      for (std::int64_t h = 0; h < s[2]; ++h)
        for (std::int64_t i = 0; i < s[3]; ++i)
          *host.ptr<float>(b, t, h, i) = static_cast<float>((7 * (token + t) + 3 * (head + h) + i + b) % 128);
  const Tensor out = context.empty(s, like.dtype());
  from_host(context, host, out);
  return out;
}

void expect_equal(const Context& context, const Tensor& got, const Tensor& wanted, const char* what) {
  const Tensor a = to_host(context, got), b = to_host(context, wanted);
  const auto bytes = static_cast<std::size_t>(a.numel() * size_of(a.dtype()));
  check(std::memcmp(a.view().raw(), b.view().raw(), bytes) == 0, kWhere,
        "{}: the exchange gave wrong numbers", what);
}

/// There and back on a few tokens.
void verify(const Context& context, const HeadExchange& exchange, const ModelConfig& m, std::int64_t b,
            std::int64_t t, const Communicator& cp) {
  const Activations a(context, m, b, t, cp.size());
  const Tensor tokens = numbered(context, a.qkv, t * cp.rank(), 0);
  exchange.to_heads(tokens, a.qkv_of_heads);
  expect_equal(context, a.qkv_of_heads,
               numbered(context, a.qkv_of_heads, 0, m.num_heads / cp.size() * cp.rank()), "tokens to heads");
  exchange.to_tokens(a.qkv_of_heads, a.qkv);
  expect_equal(context, a.qkv, tokens, "heads to tokens");
}

}  // namespace

int bench_handoff(Process& process, const std::vector<std::string>& arguments) {
  if (!arguments.empty() && is_help(arguments[0])) return print_usage(process, kUsage, arguments);
  const Options options = parse(arguments);
  const ModelConfig& m = options.config.model;
  const std::int64_t ranks = process.size(), length = options.config.train.seq_len,
                     b = options.config.train.micro_batch;
  check(ranks > 1, kWhere, "ranks: expected at least 2, got 1; start it with mpirun -np N (or srun)");
  check(length % ranks == 0 && m.num_heads % ranks == 0, kWhere,
        "expected train.seq_len and model.num_heads to be multiples of the {} ranks, got {} and {}", ranks,
        length, m.num_heads);
  Session session(options.config.train, process);
  const Context& context = session.context();
  const auto world = session.world(process, static_cast<double>(options.config.parallel.timeout));
  Communicator& cp = *world;
  const std::int64_t t = length / ranks;
  const auto pass = [&] { return Sequence(cp, make_layout("contiguous", length, ranks, 0, {})); };
  if (context.stream.device == Device::cuda)
    cp.open_window(
        handoff_window_bytes(pass(), b, m.num_heads, m.qk_head_dim, m.v_head_dim, context.statistics()));

  const HeadExchange exchange(context, cp);
  verify(context, exchange, m, b, std::min<std::int64_t>(t, 64), cp);
  const Activations a(context, m, b, t, ranks);
  for (const Tensor& x : {a.qkv, a.dt, a.y_of_heads}) fill({.value = 0, .y = x}, context.stream);

  ParameterStore store;
  const auto alone = self_communicator("tp");
  const Mixer mixer(m, "mixer.", /*transpoint=*/0, *alone, store);
  store.allocate(context, std::int64_t{25} << 20, 1);
  store.initialise(1, {});
  const Tensor u = context.empty({b * t, m.hidden_size}), output = context.empty(u.shape());
  fill({.value = 0.01, .y = u}, context.stream);

  const std::vector<std::function<void()>> works = {
      [&] {
        const Sequence sequence = pass();
        StateHandoff handoff(context, sequence, {b, m.num_heads, m.qk_head_dim, m.v_head_dim},
                             StateHandoff::Direction::later, "state handoff");
        handoff.start(context, Summaries(context, 1, b, m.num_heads, m.qk_head_dim, m.v_head_dim));
        handoff.combine(context);
      },
      [&] {
        exchange.to_heads(a.qkv, a.qkv_of_heads);
        exchange.to_heads(a.dt, a.dt_of_heads);
        exchange.to_tokens(a.y_of_heads, a.y);
      },
      [&] {
        Mixer::Saved saved;
        mixer.forward(context, pass(), u, b, u, output, saved);
      }};
  const std::vector<double> seconds = time_in_turns(
      cp, works, [&] { synchronize(context); }, options.seconds);
  if (cp.rank() != 0) return 0;
  const auto bytes = [&](const Tensor& x) {  // of which a rank keeps its own part
    return static_cast<double>(x.numel() * size_of(x.dtype()) * (ranks - 1)) / static_cast<double>(ranks);
  };
  const double summary = static_cast<double>(b * m.num_heads * (m.qk_head_dim * m.v_head_dim + 1) *
                                             size_of(context.statistics()) * (ranks - 1));
  fmt::print("{} x {} tokens on {} ranks, {} heads of {} and {}, {}, forward, a layer\n", b, length, ranks,
             m.num_heads, m.qk_head_dim, m.v_head_dim, to_string(context.dtype));
  fmt::print("{:<34} {:>12} {:>10} {:>10} {:>10}\n", "", "sent, MiB", "us", "of layer", "handoffs");
  const auto line = [&](const char* what, double sent, double time) {
    fmt::print("{:<34} {:>12.2f} {:>10.1f} {:>9.2f}% {:>10.2f}\n", what, sent / (1 << 20), 1e6 * time,
               100 * time / seconds[2], time / seconds[0]);
  };
  line("state handoff", summary, seconds[0]);
  line("heads for tokens, and back", bytes(a.qkv) + bytes(a.dt) + bytes(a.y), seconds[1]);
  line("whole mixer, TransPoint 0", summary, seconds[2]);
  return 0;
}

}  // namespace transmamba
