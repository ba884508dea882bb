#include "core/cluster.h"

#include <fstream>

#include "core/json_reader.h"

namespace transmamba {
namespace {

using Json = nlohmann::ordered_json;
constexpr auto kWhere = "cluster";

Links read_links(const JsonReader& in) {
  double latency = 0;
  in.read("latency_us", latency);
  const auto link = [&](const char* key) { return LinkCost{1e-6 * latency, 1e-9 / in.positive(key)}; };
  return {link("all_reduce_gb_s"), link("all_gather_gb_s"), link("reduce_scatter_gb_s"),
          link("exchange_gb_s"),   link("send_gb_s"),       2};
}

void speed_up(Machine& m, double matrix, double memory) {
  m.gemm_flop /= matrix, m.gemm_byte /= memory;
  m.attention.forward /= matrix, m.attention.backward /= matrix;
  for (OpCost* op : {&m.scan, &m.summary, &m.qkv_conv, &m.rotation, &m.norm, &m.gated_norm, &m.swiglu,
                     &m.copy, &m.embedding, &m.cross_entropy, &m.adamw})
    op->forward /= memory, op->backward /= memory;
}

Machine read_kernels(const JsonReader& in, const std::filesystem::path& folder) {
  std::string from;
  in.read("from", from);
  Machine machine = from == "h200"  ? Machine::builtin_h200()
                    : from == "cpu" ? Machine::builtin_cpu()
                                    : Machine::load(folder / from);
  speed_up(machine, in.positive("matrix_speed"), in.positive("memory_speed"));
  return machine;
}

}  // namespace

Cluster Cluster::load(const std::filesystem::path& file) {
  const std::string name = file.string();
  std::ifstream in(file, std::ios::binary);
  check(in.is_open() && !std::filesystem::is_directory(file), kWhere,
        "{}: cannot read this description of a cluster; configs/clusters has examples", name);
  const Json json = Json::parse(in, nullptr, /*allow_exceptions=*/false);
  const JsonReader top(json, {kWhere, name, "; configs/clusters has examples"});
  std::int64_t version = 0;
  top.read("version", version);
  check(version == kVersion, kWhere, "{}: version: expected {}, got {}", name, kVersion, version);
  Cluster cluster;
  top.read("name", cluster.name);
  check(json.contains("sources") && json["sources"].is_array(), kWhere,
        "{}: sources: expected a list of texts that say where the numbers are from", name);
  for (const Json& source : json["sources"]) {
    check(source.is_string(), kWhere, "{}: sources: expected texts, got {}", name, source.dump());
    cluster.sources.push_back(source.get<std::string>());
  }
  cluster.machine = read_kernels(top.at("kernels"), file.parent_path());
  cluster.machine.name = cluster.name;
  top.read("ranks_per_host", cluster.machine.ranks_per_host);
  top.read("hosts", cluster.hosts);
  cluster.memory_bytes = top.positive("memory_gib") * (1 << 30);
  cluster.peak_flops = top.positive("peak_tflops") * 1e12;
  cluster.machine.within_host = read_links(top.at("within_host"));
  cluster.machine.between_hosts = read_links(top.at("between_hosts"));
  return cluster;
}

}  // namespace transmamba
