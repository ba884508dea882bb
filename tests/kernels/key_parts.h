// Attention over keys in parts: what its tests share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/attention.h"

namespace transmamba::testing {

/// Keys [first, second).
using Keys = std::pair<std::int64_t, std::int64_t>;

/// The parts between `cuts`, in every order.
inline std::vector<std::vector<Keys>> orders_of_parts(const std::vector<std::int64_t>& cuts) {
  std::vector<Keys> parts;
  for (std::size_t i = 0; i + 1 < cuts.size(); ++i) parts.emplace_back(cuts[i], cuts[i + 1]);
  std::vector<std::vector<Keys>> orders;
  do orders.push_back(parts);
  while (std::next_permutation(parts.begin(), parts.end()));
  return orders;
}

/// The offset of queries to these keys, if it is `offset` to all; where they see all of them, keys - 1.
inline std::int64_t offset_to(const Keys& keys, std::int64_t offset) {
  return std::min(offset - keys.first, keys.second - keys.first - 1);
}

/// Forward and backward of q (b, t, h, n), cut in segments, as ranks of context parallelism do: each attends
/// to its own keys and then to all before. a.dk and a.dv get the own keys' gradients, `earlier_dk` and
/// `earlier_dv`, zeros before, what all segments add to the earlier ones'.
inline void attend_by_segments(const Attention& f, const AttentionBackward& a, const View& earlier_dk,
                               const View& earlier_dv, const std::vector<std::int64_t>& cuts,
                               const Stream& stream) {
  const auto each = [&](auto&& call) {
    for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
      const std::int64_t begin = cuts[i], end = cuts[i + 1];
      call([=](const auto& x) { return x.slice(1, begin, end); },
           [=](const auto& x) { return x.slice(1, 0, begin); }, f.lse.slice(2, begin, end), begin);
    }
  };
  each([&](auto&& mine, auto&& earlier, const View& logs, std::int64_t begin) {
    Attention part{mine(f.q), mine(f.k), mine(f.v), mine(f.o), logs};
    attention(part, stream);
    if (begin == 0) return;
    part.k = earlier(f.k), part.v = earlier(f.v), part.offset = begin - 1, part.continues = true;
    attention(part, stream);
  });
  each([&](auto&& mine, auto&& earlier, const View& logs, std::int64_t begin) {
    AttentionBackward part{mine(a.dout), mine(a.q),  mine(a.k),  mine(a.v), mine(a.o),
                           logs,         mine(a.dq), mine(a.dk), mine(a.dv)};
    attention_backward(part, stream);
    if (begin == 0) return;
    part.k = earlier(a.k), part.v = earlier(a.v), part.dk = earlier(earlier_dk),
    part.dv = earlier(earlier_dv);
    part.offset = begin - 1, part.accumulate = part.accumulate_dq = true;
    attention_backward(part, stream);
  });
}

}  // namespace transmamba::testing
