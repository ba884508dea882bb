#include "launch/host.h"

#include <algorithm>
#include <charconv>
#include <fstream>

namespace transmamba {

std::string processor_name() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("model name") && line.find(": ") != std::string::npos)
      return line.substr(line.find(": ") + 2);
  return "CPU";
}

std::string name_host(const std::string& text, const std::vector<std::string>& hosts) {
  if (std::all_of(hosts.begin(), hosts.end(), [&](const auto& host) { return host == hosts[0]; }))
    return text;
  constexpr std::string_view kRank = "rank ";
  std::string named = text;
  std::size_t rank = 0;
  const char* const end = text.data() + text.size();
  if (text.starts_with(kRank)) {
    const char* const stop = std::from_chars(text.data() + kRank.size(), end, rank).ptr;
    if (stop != end && *stop == ':' && rank < hosts.size())
      named.insert(static_cast<std::size_t>(stop - text.data()), " on " + hosts[rank]);
  }
  for (const char* missing : {"no such file", "No such file", "no configuration file"})
    if (text.find(missing) != std::string::npos)
      return named + "; every host has to see a run's files at the same paths, as on a shared file system";
  return named;
}

}  // namespace transmamba
