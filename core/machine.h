// What one rank's device and the links between ranks take for the operations of a model: measured once by
// `transmamba bench --quick`, kept in a small JSON file (parallel.machine), and read by everything that
// predicts or balances. Numbers are for one element type; they need only be right relative to each other for
// layouts and stages to be balanced.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace transmamba {

/// Seconds that a kernel takes, forward and backward: for being called, then per unit of work.
struct OpCost {
  double call = 0;
  double forward = 0, backward = 0;
  double call_backward = 0;
  double calls() const { return call + call_backward; }
};

/// A collective among n ranks: its number of ring steps times `latency`, and `byte` for each byte that a rank
/// sends (Traffic in parallel/comm/recorder.h counts them). No line is near a library that changes its
/// algorithm with the size, so where times were measured they count, straight from one size to the next; for
/// other numbers of ranks than were measured `latency` corrects them.
struct LinkCost {
  struct Point {
    double bytes = 0, seconds = 0;
  };
  double latency = 0;
  double byte = 0;
  double steps = 0;               ///< of the measurement behind `curve`
  std::vector<Point> curve = {};  ///< by bytes, rising; may be empty
  double seconds(double bytes, double steps) const;
};

struct Links {
  LinkCost all_reduce, all_gather, reduce_scatter, exchange, send;
  std::int64_t ranks = 2;  ///< of the group that was measured
};

struct Machine {
  static constexpr int kVersion = 3;
  std::string name;         ///< the user's
  std::string measured_on;  ///< device, cores, date, or where the numbers are from
  std::string dtype;        ///< of the measurement: float32, float64 or bfloat16

  // Matrix products take call + flop gemm_work(m, n, k) + byte (bytes of the three matrices): thin ones are
  // slower.
  double gemm_call = 0, gemm_flop = 0, gemm_byte = 0;
  double gemm_wave = 0;  ///< elements of a result that a GPU's processors have at a time; 0: no such waves
  OpCost attention;      ///< per (query, key) pair that is not masked, head and n + p
  OpCost scan;           ///< SSD scan: per token, head and n p
  OpCost summary;        ///< segment summary, the Memory Converter: per token, head and n p
  OpCost qkv_conv;       ///< the mixer's convolution: per token and channel, at width 4
  OpCost rotation;       ///< RoPE in it: per element of Q and K before the TransPoint; no call of its own
  OpCost norm;           ///< per element
  OpCost gated_norm;     ///< per element; of the mixer's output, by head
  OpCost swiglu;         ///< per element of the MLP's width
  OpCost copy;           ///< per element; forward alone
  OpCost embedding;      ///< per element
  OpCost cross_entropy;  ///< per logit
  OpCost adamw;          ///< per parameter; forward alone

  std::int64_t ranks_per_host = 8;  ///< axes that reach further use `between_hosts`
  Links within_host, between_hosts;

  double gemm(double m, double n, double k) const;  ///< seconds of (m, k) by (k, n)
  /// 2 m n k, with the last wave as long as the others: a result of 5.1 waves takes 6. Of few waves less is
  /// known, as libraries then cut results otherwise.
  double gemm_work(double m, double n, double k) const;
  const Links& links(std::int64_t extent) const;  ///< of an axis whose ranks lie within `extent` ranks

  /// Throws Error naming the file and the key where something is missing, no number, or below 0.
  static Machine load(const std::filesystem::path& file);
  void save(const std::filesystem::path& file) const;

  /// One core of a server of 2023, float32; ranks talk through shared memory.
  static Machine builtin_cpu();
  /// DESIGN section 5: one H200, bfloat16, as measured with PyTorch, cuDNN and mamba-ssm; links as measured
  /// over NVLink, and between hosts assumed to be 400 Gbit/s a GPU.
  static Machine builtin_h200();
  /// parallel.machine where it names a file, or else what is built in for train.device.
  static Machine of(const std::filesystem::path& file, const std::string& device);
};

/// Seconds of a collective in which each of `ranks` ranks sends `bytes` in `steps` rounds; 0 for one rank.
double collective_seconds(const LinkCost& link, std::int64_t ranks, double bytes, double steps);
/// Of a buffer of `bytes` in all: each of the ranks has it whole (all_reduce), or ends up (all_gather) or
/// starts (reduce_scatter) with it whole.
double all_reduce_seconds(const Links& links, std::int64_t ranks, double bytes);
double all_gather_seconds(const Links& links, std::int64_t ranks, double bytes);
double reduce_scatter_seconds(const Links& links, std::int64_t ranks, double bytes);

}  // namespace transmamba
