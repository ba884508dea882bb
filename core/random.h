// Random numbers without state: each is a function of (seed, stream, index) alone. A rank that holds a slice
// of a parameter draws it by global index, so that every layout of ranks starts from the same bits.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace transmamba {

/// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3; SC 2011).
std::array<std::uint32_t, 4> philox4x32(const std::array<std::uint32_t, 4>& counter,
                                        const std::array<std::uint32_t, 2>& key);

/// Names a stream of numbers, e.g. by a parameter's name: 64-bit FNV-1a of the bytes. Checkpoints and runs
/// rely on it staying as it is.
constexpr std::uint64_t stream_of(std::string_view name) {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash;
}

/// In [0, 1), a multiple of 2^-53. The seed is Philox's key; index and stream are its counter.
double uniform(std::uint64_t seed, std::uint64_t stream, std::uint64_t index);

/// Mean 0, standard deviation 1, by Box-Muller on the same draw that `uniform` reads: use one of the two with
/// a stream.
double normal(std::uint64_t seed, std::uint64_t stream, std::uint64_t index);

}  // namespace transmamba
