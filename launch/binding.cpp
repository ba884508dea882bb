#include "launch/binding.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <iterator>
#include <memory>

namespace transmamba {
namespace {

constexpr int kMostCores = 1 << 16;

Cores common(const Cores& a, const Cores& b) {
  Cores both;
  std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
  return both;
}

Cores read_cores(const std::filesystem::path& file) {
  std::ifstream in(file);
  std::string line;
  std::getline(in, line);
  return parse_cores(line);
}

}  // namespace

Cores parse_cores(const std::string& list) {
  Cores cores;
  const char *at = list.data(), *const end = at + list.size();
  const auto number = [&](int& value) {
    const auto [stop, error] = std::from_chars(at, end, value);
    at = stop;
    return error == std::errc() && 0 <= value && value < kMostCores;
  };
  while (at != end) {
    int first = 0;
    if (!number(first)) return {};
    int last = first;
    if (at != end && *at == '-' && (++at, !number(last) || last < first)) return {};
    for (int core = first; core <= last; ++core) cores.push_back(core);
    if (at == end) break;
    if (*at != ',' || ++at == end) return {};
  }
  std::sort(cores.begin(), cores.end());
  cores.erase(std::unique(cores.begin(), cores.end()), cores.end());
  return cores;
}

std::string format_cores(const Cores& cores) {
  std::string text;
  for (std::size_t i = 0; i < cores.size();) {
    std::size_t end = i + 1;
    while (end < cores.size() && cores[end] == cores[end - 1] + 1) ++end;
    text += fmt::format("{}{}", text.empty() ? "" : ",", cores[i]);
    if (end - i > 1) text += fmt::format("-{}", cores[end - 1]);
    i = end;
  }
  return text;
}

std::optional<Binding> choose_binding(const Host& host) {
  const bool is_free = host.allowed.size() >= host.online.size() || host.is_shared;
  if (!is_free || host.online.empty() || host.near.empty()) return std::nullopt;
  const auto cores_of = [&](int rank) {
    return common(host.near[static_cast<std::size_t>(rank) % host.near.size()], host.allowed);
  };
  Binding binding{cores_of(host.local_rank), 0};
  if (binding.cores.empty()) return std::nullopt;
  for (int rank = 0; rank < host.local_size; ++rank) {
    const Cores theirs = cores_of(rank);  // none: it runs wherever it may
    binding.ranks += theirs.empty() || !common(theirs, binding.cores).empty();
  }
  return binding;
}

Cores cores_near(const std::string& pci, const std::filesystem::path& sys) {
  return read_cores(sys / "bus/pci/devices" / pci / "local_cpulist");
}

Cores online_cores(const std::filesystem::path& sys) { return read_cores(sys / "devices/system/cpu/online"); }

Cores own_cores() {
  const std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> set(CPU_ALLOC(kMostCores),
                                                             [](cpu_set_t* s) { CPU_FREE(s); });
  const std::size_t size = CPU_ALLOC_SIZE(kMostCores);
  Cores cores;
  if (!set || sched_getaffinity(0, size, set.get()) != 0) return cores;
  for (int core = 0; core < kMostCores; ++core)
    if (CPU_ISSET_S(static_cast<std::size_t>(core), size, set.get())) cores.push_back(core);
  return cores;
}

bool bind_to(const Cores& cores) {
  const std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> set(CPU_ALLOC(kMostCores),
                                                             [](cpu_set_t* s) { CPU_FREE(s); });
  const std::size_t size = CPU_ALLOC_SIZE(kMostCores);
  if (!set || cores.empty()) return false;
  CPU_ZERO_S(size, set.get());
  for (const int core : cores) CPU_SET_S(static_cast<std::size_t>(core), size, set.get());
  return sched_setaffinity(0, size, set.get()) == 0;
}

}  // namespace transmamba
