#include "core/shard_boxes.h"

#include <algorithm>

namespace transmamba {

std::vector<ShardBox> shard_boxes(const ShardSpec& spec, std::int64_t begin, std::int64_t end) {
  const Shape local = spec.shape(), start = spec.offset();
  std::vector<ShardBox> boxes;
  while (begin < end) {
    // The largest box from here: whole rows of the outermost dim that begins here and has a whole row left.
    int dim = local.rank() - 1;
    std::int64_t row = 1;  // elements of one index of `dim`
    while (dim > 0 && begin % (row * local[dim]) == 0 && row * local[dim] <= end - begin) row *= local[dim--];
    ShardBox box{begin, start, local};
    std::int64_t rest = begin / row;
    const std::int64_t at = rest % local[dim];
    const std::int64_t count = std::min(local[dim] - at, (end - begin) / row);
    for (int d = 0; d <= dim; ++d) box.extent[d] = 1;
    box.extent[dim] = count;
    for (int d = dim; d >= 0; --d) box.offset[d] += rest % local[d], rest /= local[d];
    boxes.push_back(box);
    begin += count * row;
  }
  return boxes;
}

}  // namespace transmamba
