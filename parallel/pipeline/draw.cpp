#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kernels/check.h"
#include "parallel/pipeline/schedule.h"

namespace transmamba {
namespace {

/// A slot's first column says which micro-batch and way, so that it can be read even in one column; the
/// others which way and, by turns, which chunk.
char first_column(const Action& action) {
  const auto number = static_cast<char>(action.micro_batch % 10);
  return static_cast<char>((action.kind == Action::Kind::forward ? '0' : 'a') + number);
}
char next_columns(const Action& action) {
  const bool odd = action.chunk % 2 != 0;
  return action.kind == Action::Kind::forward ? (odd ? '~' : '-') : (odd ? '#' : '=');
}

}  // namespace

std::string draw(const Schedule& schedule, const Timeline& timeline, int width) {
  const std::size_t digits = std::to_string(schedule.pp() - 1).size();
  const int columns = width - static_cast<int>(digits) - 8;  // "rank 0 |" and "|"
  check(columns >= 10, "pipeline", "a drawing needs more columns than {}", width);
  const double scale = timeline.seconds > 0 ? columns / timeline.seconds : 0;
  std::string text;
  for (std::size_t rank = 0; rank < timeline.ranks.size(); ++rank) {
    std::string line(static_cast<std::size_t>(columns), ' ');
    for (const Timeline::Slot& slot : timeline.ranks[rank]) {
      // Slots share their boundary's rounding, so that neither overwrites the other.
      const auto begin = static_cast<std::size_t>(std::llround(slot.begin * scale));
      const auto end = std::min(static_cast<std::size_t>(std::llround(slot.end * scale)),
                                static_cast<std::size_t>(columns));
      for (std::size_t c = begin; c < end; ++c)
        line[c] = c == begin ? first_column(slot.action) : next_columns(slot.action);
    }
    text += fmt::format("rank {:>{}} |{}|\n", rank, digits, line);
  }
  return text +
         (schedule.has_backward ? "0- forward, a= backward of micro-batch 0 (mod 10)"
                                : "0- micro-batch 0 (mod 10)") +
         (schedule.chunks > 1 ? "; ~ and # in odd chunks\n" : "\n");
}

}  // namespace transmamba
