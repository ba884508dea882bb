// Pipeline schedules as data: for each pipeline rank, what it does in which order.
//
// The model is cut into pp * chunks virtual stages; stage s is run by pipeline rank s % pp as its chunk s /
// pp. A forward of stage s needs that of stage s - 1 of the same micro-batch; a backward of stage s that of
// stage s + 1, and its own forward.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace transmamba {

/// The virtual stage that is chunk `chunk` of pipeline rank `rank`.
inline int stage_of(int chunk, int rank, int pp) { return chunk * pp + rank; }

struct Action {
  enum class Kind : std::uint8_t { forward, backward };
  Kind kind = Kind::forward;
  int chunk = 0;
  std::int64_t micro_batch = 0;
  bool operator==(const Action&) const = default;
};

struct Schedule {
  int chunks = 1;  ///< model chunks a rank
  std::int64_t micro_batches = 0;
  bool has_backward = true;
  std::vector<std::vector<Action>> ranks;  ///< [pipeline rank][slot]
  int pp() const { return static_cast<int>(ranks.size()); }
};

/// One forward, one backward (Narayanan et al., 2021, section 2.2), interleaved where chunks > 1, which needs
/// micro_batches to be a multiple of pp: Error otherwise, with the numbers that would work.
Schedule one_forward_one_backward(int pp, int chunks, std::int64_t micro_batches);
/// For evaluation.
Schedule forward_only(int pp, int chunks, std::int64_t micro_batches);

/// Throws Error unless every stage runs every micro-batch forward (and backward) exactly once, in an order in
/// which all ranks can finish, each waiting only for what others send. The same with sends that wait for
/// their receives, as GPUs' do, and both ends of a lane of transfers (parallel/comm/communicator.h) in one
/// order.
void check_schedule(const Schedule& schedule);

/// When every action runs, if each takes as long as said for its virtual stage (and nothing else takes time).
struct Timeline {
  struct Slot {
    Action action;
    double begin = 0, end = 0;
  };
  std::vector<std::vector<Slot>> ranks;
  double seconds = 0;  ///< of the whole
  double bubble = 0;   ///< part of it in which a rank idles, mean over ranks
};
Timeline simulate(const Schedule& schedule, std::span<const double> forward, std::span<const double> backward,
                  double transfer = 0);

/// Micro-batches over time, a line a rank, at most `width` characters.
std::string draw(const Schedule& schedule, const Timeline& timeline, int width = 100);

}  // namespace transmamba
