// Which cores a rank runs on: those near its GPU, where its launcher left it the choice.
//
// Memory that a process gets lies near the cores that it runs on, so copies to and from the GPU then pass no
// other socket. For network cards nothing is done: NCCL itself takes the one that the machine's topology has
// nearest to each GPU.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace transmamba {

using Cores = std::vector<int>;  ///< numbers as Linux has them, rising

/// Of a list as Linux writes it, "0-15,64-79"; none where it is empty or another text.
Cores parse_cores(const std::string& list);
std::string format_cores(const Cores& cores);  ///< such a list

struct Binding {
  Cores cores;
  int ranks = 1;  ///< of this host that run on some of these, this one included
};

/// A host as one of its ranks sees it.
struct Host {
  std::vector<Cores> near;  ///< by GPU; none where that is not known
  Cores online;
  Cores allowed;           ///< to this process
  bool is_shared = false;  ///< all ranks of the host, of several, may use the same cores
  int local_rank = 0, local_size = 1;
};

/// Ranks take GPUs in turn, and each the allowed ones of the cores near its own; those whose GPUs are near
/// the same cores share them. Nothing, and so all stays as it is, where a launcher has chosen: where fewer
/// cores than there are online are allowed, and not the same ones to all; and where no core is near and
/// allowed.
std::optional<Binding> choose_binding(const Host& host);

/// What `sys` says of the PCI address of a GPU, "0000:61:00.0".
Cores cores_near(const std::string& pci, const std::filesystem::path& sys = "/sys");
Cores online_cores(const std::filesystem::path& sys = "/sys");
Cores own_cores();  ///< those that the calling thread may run on
/// Of the calling thread and those that it starts. False where the system does not allow it.
bool bind_to(const Cores& cores);

}  // namespace transmamba
