#include "parallel/checkpoint_folder.h"

#include <fcntl.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <system_error>

#include "core/durable_rename.h"
#include "parallel/checkpoint.h"

namespace transmamba {
namespace {

namespace fs = std::filesystem;
constexpr std::string_view kWhere = "checkpoint";
constexpr std::string_view kPartial = ".partial", kOld = ".old";
constexpr std::string_view kStep = "step_";

/// What is in a folder; nothing where it cannot be read.
std::vector<fs::path> entries_of(const fs::path& root) {
  std::vector<fs::path> entries;
  std::error_code error;
  for (fs::directory_iterator it(root, error); !error && it != fs::directory_iterator(); it.increment(error))
    entries.push_back(it->path());
  return entries;
}

/// The step of a checkpoint by its folder's name; -1 for other names.
std::int64_t step_of(const fs::path& folder) {
  const std::string name = folder.filename().string();
  if (!name.starts_with(kStep)) return -1;
  std::int64_t step = -1;
  const auto [stop, error] = std::from_chars(name.data() + kStep.size(), name.data() + name.size(), step);
  return error == std::errc() && stop == name.data() + name.size() ? step : -1;
}

fs::path with_suffix(const fs::path& folder, std::string_view suffix) {
  return folder.string() + std::string(suffix);
}

}  // namespace

fs::path checkpoint_folder(const fs::path& root, std::int64_t step) {
  return root / fmt::format("{}{:08}", kStep, step);
}

fs::path partial_folder(const fs::path& root, std::int64_t step) {
  return with_suffix(checkpoint_folder(root, step), kPartial);
}

fs::path trial_folder(const fs::path& root, int rank) {
  return root / fmt::format("{}trial_{:05}{}", kStep, rank, kPartial);
}

std::string cksum_line(const fs::path& index) {
  std::ifstream in(index, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(in), {}};
  std::uint32_t crc = 0;
  const auto add = [&](unsigned char byte) {
    crc ^= static_cast<std::uint32_t>(byte) << 24;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 31 ? crc << 1 ^ 0x04C11DB7U : crc << 1;
  };
  for (const char byte : bytes) add(static_cast<unsigned char>(byte));
  for (std::size_t n = bytes.size(); n > 0; n >>= 8) add(static_cast<unsigned char>(n & 0xFF));
  return fmt::format("{} {} {}\n", ~crc, bytes.size(), index.filename().string());
}

void write_cksum(const fs::path& folder) {
  const fs::path path = folder / "index.cksum";
  std::ofstream out(path, std::ios::binary);
  out << cksum_line(folder / "index.h5");
  out.close();
  check(!out.fail(), kWhere, "{}: cannot be written", path.string());
  sync_to_disk(path);
}

void put_in_place(const fs::path& aside, const fs::path& folder) {
  if (!fs::exists(fs::symlink_status(folder))) return durable_rename(aside, folder);
  if (::renameat2(AT_FDCWD, aside.c_str(), AT_FDCWD, folder.c_str(), RENAME_EXCHANGE) == 0) {
    sync_to_disk(folder.parent_path());
    return;  // what was there ends in .partial now
  }
  const fs::path replaced = with_suffix(folder, std::string(".replaced") + std::string(kPartial));
  fs::remove_all(replaced);
  fs::rename(folder, replaced);
  try {
    durable_rename(aside, folder);
  } catch (const Error&) {
    std::error_code ignored;
    fs::rename(replaced, folder, ignored);
    throw;
  }
}

void set_aside_later_ones(const fs::path& root, std::int64_t step) {
  for (const fs::path& folder : list_checkpoints(root, step)) {
    fs::path old = with_suffix(folder, kOld);
    for (int n = 2; fs::exists(fs::symlink_status(old)); ++n)
      old = with_suffix(folder, fmt::format("{}{}", kOld, n));
    fs::rename(folder, old);
  }
}

void remove_old(const fs::path& root, std::int64_t keep) {
  std::error_code ignored;
  for (const fs::path& entry : entries_of(root))
    if (const std::string name = entry.filename().string();
        name.starts_with(kStep) && name.ends_with(kPartial))
      fs::remove_all(entry, ignored);
  if (keep <= 0) return;
  std::int64_t kept = 0;
  for (const fs::path& folder : list_checkpoints(root)) {  // the one just saved comes first
    if (++kept <= keep) continue;
    const fs::path doomed = with_suffix(folder, kPartial);  // never half a checkpoint under a good name
    fs::rename(folder, doomed, ignored);
    fs::remove_all(doomed, ignored);
  }
}

std::vector<fs::path> list_checkpoints(const fs::path& root, std::int64_t after) {
  std::vector<fs::path> folders;
  for (fs::path& entry : entries_of(root))
    if (const std::int64_t step = step_of(entry); step >= 0 && step > after)
      folders.push_back(std::move(entry));
  std::sort(folders.begin(), folders.end(),
            [](const fs::path& a, const fs::path& b) { return step_of(a) > step_of(b); });
  return folders;
}

}  // namespace transmamba
