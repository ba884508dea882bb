// Folders of checkpoints: names, the checksum of an index, and how one takes its place among others. For
// parallel/checkpoint*.cpp only.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace transmamba {

inline constexpr std::int64_t kCheckpointVersion = 1;

/// The line that POSIX `cksum index.h5` prints: CRC-32 of the bytes and then of their number, and the number.
std::string cksum_line(const std::filesystem::path& index);
/// Writes it beside the index.
void write_cksum(const std::filesystem::path& folder);

std::filesystem::path checkpoint_folder(const std::filesystem::path& root, std::int64_t step);
/// Where it is written, and where rank `rank` tries whether it could be.
std::filesystem::path partial_folder(const std::filesystem::path& root, std::int64_t step);
std::filesystem::path trial_folder(const std::filesystem::path& root, int rank);

/// Gives `aside` the name `folder`. Where that is taken (the same step again) the two are swapped, so that at
/// no moment is there neither. File systems that cannot swap get two renames.
void put_in_place(const std::filesystem::path& aside, const std::filesystem::path& folder);
/// Checkpoints of later steps become step_<step>.old, .old2, ..: none is overwritten.
void set_aside_later_ones(const std::filesystem::path& root, std::int64_t step);
/// What crashes left, and all but the `keep` newest (0: none). Best effort: a checkpoint that cannot be
/// removed costs disk space, not the run.
void remove_old(const std::filesystem::path& root, std::int64_t keep);

}  // namespace transmamba
