#include "parallel/context/sequence.h"

namespace transmamba {

Sequence::Sequence(Communicator& cp, const ContextLayout& layout) : cp_(&cp), mine_(layout.segments.size()) {
  check(static_cast<int>(layout.segments.size()) == cp.size(), "context",
        "a layout for {} ranks on a group of {}", layout.segments.size(), cp.size());
  tokens_ = layout.tokens_of(static_cast<std::size_t>(cp.rank()));
  for (std::size_t rank = 0; rank < layout.segments.size(); ++rank) {
    std::int64_t offset = 0;
    int index = 0;
    for (const Segment& segment : layout.segments[rank]) {
      parts_.push_back({segment, static_cast<int>(rank), offset, index++});
      offset += segment.size();
    }
    length_ += offset;
    max_parts_ = std::max<std::int64_t>(max_parts_, index);
  }
  std::sort(parts_.begin(), parts_.end(),
            [](const Part& a, const Part& b) { return a.segment.begin < b.segment.begin; });
  for (std::size_t k = 0; k < parts_.size(); ++k)
    mine_[static_cast<std::size_t>(parts_[k].rank)].push_back(k);
  check(cp.size() == 1 || cp.size() * max_parts_ <= kMaxSegments, "context",
        "parallel.cp {} with {} segments a rank: expected at most {} segments; other layouts and a larger "
        "parallel.cp_chunk make fewer",
        cp.size(), max_parts_, kMaxSegments);
  for (const Part& part : parts_)
    places_.push_back({static_cast<std::int16_t>(part.rank * max_parts_ + part.index),
                       static_cast<std::int16_t>(part.rank == cp.rank() ? part.index : -1)});
}

std::int64_t Sequence::tokens_before(std::int64_t position, int rank) const {
  std::int64_t count = 0;
  for (const std::size_t k : mine_[static_cast<std::size_t>(rank)]) {
    const Segment& s = parts_[k].segment;
    count += std::clamp<std::int64_t>(position - s.begin, 0, s.size());
  }
  return count;
}

void Sequence::keep(const Stream& stream, Pending pending, std::vector<Tensor> buffers) const {
  if (stream.device == Device::cpu) return pending.wait();
  kept_.push_back({std::move(buffers), std::move(pending)});
}

Tensor Sequence::deal(const Context& context, const Tensor& whole) const {
  check(whole.dim(1) == length_, "context", "expected sequences of {} tokens, got {}", length_, whole.dim(1));
  if (cp_->size() == 1) return whole;
  const Tensor out = context.empty_host({whole.dim(0), tokens_}, DType::i32);
  for (const std::size_t k : mine()) {
    const Part& part = parts_[k];
    for (std::int64_t b = 0; b < whole.dim(0); ++b)
      std::copy_n(whole.ptr<std::int32_t>(b, part.segment.begin), part.segment.size(),
                  out.ptr<std::int32_t>(b, part.offset));
  }
  return out;
}

}  // namespace transmamba
