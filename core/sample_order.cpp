#include <algorithm>
#include <bit>
#include <vector>

#include "core/tokens.h"
#include "kernels/dispatch.h"

namespace transmamba {
namespace {

// splitmix64's finaliser
std::uint64_t mix(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

}  // namespace

SampleOrder::SampleOrder(std::int64_t size, std::int64_t seq_len, std::uint64_t seed)
    : seq_len_(seq_len), seed_(seed) {
  check(seq_len > 0, "data", "sequence length: expected > 0, got {}", seq_len);
  check(size > seq_len, "data",
        "too few tokens: a sample of sequence length {} takes {} (one more for the last target), the data "
        "has {}",
        seq_len, seq_len + 1, size);
  samples_ = (size - 1) / seq_len;
}

SampleOrder SampleOrder::sequential(std::int64_t size, std::int64_t seq_len) {
  SampleOrder order(size, seq_len, 0);
  order.shuffled_ = false;
  return order;
}

// A Feistel network is a bijection of [0, 4^half) whatever its round function. Walking on until the result is
// below n makes it one of [0, n); as 4^half < 4n that takes fewer than four steps on average.
std::int64_t SampleOrder::sample(std::int64_t epoch, std::int64_t index) const {
  check(epoch >= 0 && index >= 0 && index < samples_, "data", "epoch {} index {}: expected an index below {}",
        epoch, index, samples_);
  if (!shuffled_) return index;
  constexpr int kRounds = 8;
  const auto n = static_cast<std::uint64_t>(samples_);
  const int half = std::max(1, static_cast<int>(std::bit_width(n - 1) + 1) / 2);
  const std::uint64_t mask = (std::uint64_t{1} << half) - 1;
  const std::uint64_t key = mix(mix(seed_) ^ static_cast<std::uint64_t>(epoch));
  auto x = static_cast<std::uint64_t>(index);
  do {
    std::uint64_t left = x >> half, right = x & mask;
    for (std::uint64_t round = 0; round < kRounds; ++round) {
      const std::uint64_t next = left ^ (mix(mix(key + round) ^ right) & mask);
      left = right;
      right = next;
    }
    x = left << half | right;
  } while (x >= n);
  return static_cast<std::int64_t>(x);
}

void read_batch(const TokenDataset& data, const SampleOrder& order, std::int64_t first, const View& tokens,
                const View& targets) {
  const std::int64_t t = order.seq_len(), b = tokens.rank() > 0 ? tokens.dim(0) : 0;
  expect(tokens, {b, t}, DType::i32, "data", "tokens");
  expect(targets, {b, t}, DType::i32, "data", "targets");
  check(first >= 0, "data", "first sample: expected >= 0, got {}", first);
  std::vector<std::int32_t> window(static_cast<std::size_t>(t + 1));
  for (std::int64_t i = 0; i < b; ++i) {
    data.read(order.begin(first + i), window);
    std::copy_n(window.data(), t, tokens.ptr<std::int32_t>(i));
    std::copy_n(window.data() + 1, t, targets.ptr<std::int32_t>(i));
  }
}

}  // namespace transmamba
