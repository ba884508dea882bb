#include "parallel/context/conv_halo.h"

namespace transmamba {

TokenExchange halo_exchange(const Sequence& sequence, std::int64_t width) {
  std::vector<TokenMove> moves;
  for (const Sequence::Part& to : sequence.parts()) {
    const std::int64_t first = to.segment.begin - width;  // of the halo; may be before the sequence
    for (const Sequence::Part& from : sequence.parts()) {
      const std::int64_t begin = std::max(first, from.segment.begin),
                         end = std::min(to.segment.begin, from.segment.end);
      if (begin < end)
        moves.push_back({from.rank, to.rank, from.offset + begin - from.segment.begin,
                         to.index * width + begin - first, end - begin});
    }
  }
  return {sequence.cp(), std::move(moves), /*in_window=*/true};
}

}  // namespace transmamba
