#include "core/machine.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>

#include "core/json_reader.h"
#include "kernels/check.h"
#include "kernels/workspace.h"

namespace transmamba {
namespace {

using Json = nlohmann::ordered_json;
constexpr auto kWhere = "machine";

// One list of members for reading and writing; `io(name, member)` is told each.
template <class M, class F>
void for_each_op(M& m, F&& io) {
  io("attention", m.attention);
  io("scan", m.scan);
  io("summary", m.summary);
  io("qkv_conv", m.qkv_conv);
  io("rotation", m.rotation);
  io("norm", m.norm);
  io("gated_norm", m.gated_norm);
  io("swiglu", m.swiglu);
  io("copy", m.copy);
  io("embedding", m.embedding);
  io("cross_entropy", m.cross_entropy);
  io("adamw", m.adamw);
}
template <class L, class F>
void for_each_link(L& links, F&& io) {
  io("all_reduce", links.all_reduce);
  io("all_gather", links.all_gather);
  io("reduce_scatter", links.reduce_scatter);
  io("exchange", links.exchange);
  io("send", links.send);
}

Links read_links(const JsonReader& in) {
  Links links;
  in.read("ranks", links.ranks);
  for_each_link(links, [&](const char* name, LinkCost& link) {
    const JsonReader at = in.at(name);
    at.read("latency", link.latency);
    at.read("byte", link.byte);
    if (!at.has("curve")) return;
    std::vector<std::pair<double, double>> points;
    at.read("curve", points), at.read("steps", link.steps);
    for (const auto& [bytes, seconds] : points) link.curve.push_back({bytes, seconds});
  });
  return links;
}

Json write_links(const Links& links) {
  Json out{{"ranks", links.ranks}};
  for_each_link(links, [&](const char* name, const LinkCost& link) {
    out[name] = {{"latency", link.latency}, {"byte", link.byte}};
    if (link.curve.empty()) return;
    out[name]["steps"] = link.steps;
    for (const LinkCost::Point& p : link.curve) out[name]["curve"].push_back({p.bytes, p.seconds});
  });
  return out;
}

}  // namespace

double Machine::gemm(double m, double n, double k) const {
  const double size = dtype == "float64" ? 8 : dtype == "bfloat16" ? 2 : 4;
  return gemm_call + gemm_flop * gemm_work(m, n, k) + gemm_byte * size * (m * k + k * n + m * n);
}

double Machine::gemm_work(double m, double n, double k) const {
  constexpr double kMany = 4;
  double results = m * n;
  if (gemm_wave > 0 && results >= kMany * gemm_wave) results = std::ceil(results / gemm_wave) * gemm_wave;
  return 2 * results * k;
}

const Links& Machine::links(std::int64_t extent) const {
  return extent <= ranks_per_host ? within_host : between_hosts;
}

Machine Machine::load(const std::filesystem::path& file) {
  const std::string name = file.string();
  std::ifstream in(file, std::ios::binary);
  check(
      in.is_open() && !std::filesystem::is_directory(file), kWhere,
      "{}: cannot read this machine file (parallel.machine); `transmamba bench --quick --output FILE` makes "
      "one",
      name);
  const Json json = Json::parse(in, nullptr, /*allow_exceptions=*/false);
  const JsonReader top(json, {kWhere, name, "; `transmamba bench --quick` writes such a file"});
  Machine m;
  std::int64_t version = 0;
  top.read("version", version);
  check(version == kVersion, kWhere,
        "{}: version: expected {}, got {}; measure again with `transmamba bench`", name, kVersion, version);
  top.read("name", m.name);
  top.read("measured_on", m.measured_on);
  top.read("dtype", m.dtype);
  check(m.dtype == "float32" || m.dtype == "float64" || m.dtype == "bfloat16", kWhere,
        "{}: dtype: expected one of float32, float64, bfloat16, got \"{}\"", name, m.dtype);
  top.at("gemm").read("call", m.gemm_call);
  top.at("gemm").read("flop", m.gemm_flop);
  top.at("gemm").read("byte", m.gemm_byte);
  if (top.at("gemm").has("wave")) top.at("gemm").read("wave", m.gemm_wave);
  for_each_op(m, [&](const char* op, OpCost& cost) {
    const JsonReader at = top.at(op);
    at.read("call", cost.call);
    at.read("forward", cost.forward);
    at.read("backward", cost.backward);
    at.read("call_backward", cost.call_backward);
  });
  top.read("ranks_per_host", m.ranks_per_host);
  m.within_host = read_links(top.at("within_host"));
  m.between_hosts = read_links(top.at("between_hosts"));
  return m;
}

void Machine::save(const std::filesystem::path& file) const {
  Json json{{"version", kVersion}, {"name", name}, {"measured_on", measured_on}, {"dtype", dtype}};
  json["gemm"] = {{"call", gemm_call}, {"flop", gemm_flop}, {"byte", gemm_byte}, {"wave", gemm_wave}};
  for_each_op(*this, [&](const char* op, const OpCost& cost) {
    json[op] = {{"call", cost.call},
                {"forward", cost.forward},
                {"call_backward", cost.call_backward},
                {"backward", cost.backward}};
  });
  json["ranks_per_host"] = ranks_per_host;
  json["within_host"] = write_links(within_host);
  json["between_hosts"] = write_links(between_hosts);
  std::ofstream out(file, std::ios::binary);
  out << json.dump(2) << '\n';
  out.flush();
  check(out.good(), kWhere, "{}: cannot write: {}", file.string(), std::strerror(errno));
}

Machine Machine::of(const std::filesystem::path& file, const std::string& device) {
  if (!file.empty()) return load(file);
  return device == "cuda" ? builtin_h200() : builtin_cpu();
}

Machine Machine::builtin_cpu() {
  Machine m;
  m.name = "built-in CPU";
  m.measured_on = "one core of an Intel Xeon, 2026-11";
  m.dtype = "float32";
  m.gemm_call = 2e-6, m.gemm_flop = 1.0 / 110e9, m.gemm_byte = 1.0 / 40e9;
  m.attention = {2e-6, 6e-11, 1.1e-10, 2e-6};
  m.scan = {2e-6, 1.0e-10, 3.4e-10, 2e-6};
  m.summary = {2e-6, 1.7e-11, 5.2e-11, 2e-6};
  m.qkv_conv = {2e-6, 7.8e-10, 1.9e-9, 2e-6};
  m.rotation = {0, 1.0e-9, 1.0e-9};
  m.norm = {1e-6, 2.5e-10, 1.1e-9, 1e-6};
  m.gated_norm = {1e-6, 9.5e-10, 2.6e-9, 1e-6};
  m.swiglu = {1e-6, 5.6e-10, 8.0e-10, 1e-6};
  m.copy = {1e-6, 1.2e-10, 0, 0};
  m.embedding = {1e-6, 1.6e-10, 1.5e-10, 1e-6};
  m.cross_entropy = {1e-6, 5.4e-10, 4.7e-10, 1e-6};
  m.adamw = {1e-6, 6.0e-10, 0, 0};
  m.ranks_per_host = 64;
  const LinkCost shared{5e-6, 1.0 / 5e9}, network{30e-6, 1.0 / 1.2e9};
  m.within_host = {shared, shared, shared, shared, shared, 2};
  m.between_hosts = {network, network, network, network, network, 2};
  return m;
}

Machine Machine::builtin_h200() {
  Machine m;
  m.name = "built-in H200";
  m.measured_on = "transmamba bench kernels and bench comm on H200s, two over NVLink, 2026-11; bfloat16";
  m.dtype = "bfloat16";
  // The units of the shape that was measured: batch 2, T 8192, 16 heads of 96. Attention's backward pass is
  // the one that adds in any order (train.deterministic = false).
  constexpr double kPairs = 2.0 * 16 * 8192 * 8193 / 2 * (96 + 96);
  constexpr double kStates = 2.0 * 16 * 8192 * 96 * 96;
  constexpr double kByte = 1 / (0.85 * 4.27e12), kLaunch = 5e-6;
  // Elementwise work is the bytes it reads and writes, two an element, at 85 % of a device copy's speed.
  const auto moves = [](double forward, double backward) {
    return OpCost{kLaunch, 2 * forward * kByte, 2 * backward * kByte, 2 * kLaunch};
  };
  m.gemm_call = kLaunch, m.gemm_flop = 1 / 700e12, m.gemm_byte = 0;
  m.gemm_wave = workspace::kProcessors * 128 * 256;
  m.attention = {2e-5, 0.957e-3 / kPairs, 2.63e-3 / kPairs, 4.5e-5};
  // Lines through one sequence of 16384 tokens and one of 32768; of the summary's gradients, through prefixes
  // of 1024 and 8192.
  m.scan = {2.4e-5, 0.0782e-3 / kStates, 0.305e-3 / kStates, 5.5e-5};
  m.summary = {1.6e-5, 0.0246e-3 / kStates, 0.149e-3 / kStates, 3.6e-5};
  m.qkv_conv = moves(2, 3);
  m.rotation = {kLaunch, kByte, kByte,
                4 * kLaunch};  // a second copy of the keys; its tokens are some blocks'
  m.norm = moves(2, 4);
  m.gated_norm = moves(3, 5);
  m.swiglu = moves(3, 5);
  m.copy = moves(2, 0);
  m.embedding = moves(2, 3);
  m.cross_entropy = moves(1, 2);
  m.adamw = {kLaunch, 28 * kByte, 0};  // fp32 weight, two moments and their writes, gradient
  m.ranks_per_host = 8;
  m.within_host = {{10e-6, 1 / 328e9}, {10e-6, 1 / 288e9}, {10e-6, 1 / 277e9},
                   {10e-6, 1 / 355e9}, {22e-6, 1 / 269e9}, 2};
  const LinkCost network{15e-6, 1 / 45e9};
  m.between_hosts = {network, network, network, network, network, 2};
  return m;
}

/// Between two points as a line through both, which is right wherever a call has a latency and a rate; below
/// the first as a line from the latency alone; past the last at the last one's rate.
double LinkCost::seconds(double bytes, double call_steps) const {
  if (curve.empty()) return call_steps * latency + bytes * byte;
  const Point last = curve.back();
  double measured = last.seconds * (last.bytes > 0 ? bytes / last.bytes : 1);
  Point from{0, std::min(steps * latency, curve.front().seconds)};
  for (const Point& to : curve) {
    if (bytes <= to.bytes) {
      const double part = to.bytes > from.bytes ? (bytes - from.bytes) / (to.bytes - from.bytes) : 1;
      measured = from.seconds + part * (to.seconds - from.seconds);
      break;
    }
    from = to;
  }
  if (call_steps == steps) return measured;
  // Where next to all of it is latency, as if all were.
  return std::max(measured + (call_steps - steps) * latency, measured * std::min(1.0, call_steps / steps));
}

double collective_seconds(const LinkCost& link, std::int64_t ranks, double bytes, double steps) {
  return ranks <= 1 ? 0 : link.seconds(bytes, steps);
}

double all_reduce_seconds(const Links& links, std::int64_t ranks, double bytes) {
  const auto n = static_cast<double>(ranks);
  return collective_seconds(links.all_reduce, ranks, 2 * (n - 1) / n * bytes, 2 * (n - 1));
}
double all_gather_seconds(const Links& links, std::int64_t ranks, double bytes) {
  const auto n = static_cast<double>(ranks);
  return collective_seconds(links.all_gather, ranks, (n - 1) / n * bytes, n - 1);
}
double reduce_scatter_seconds(const Links& links, std::int64_t ranks, double bytes) {
  const auto n = static_cast<double>(ranks);
  return collective_seconds(links.reduce_scatter, ranks, (n - 1) / n * bytes, n - 1);
}

}  // namespace transmamba
