// Every setting of a run, typed. One table in config_keys.cpp binds each member to its key `section.key`,
// with its help text and what is allowed; INI files, the command line and `--help` are all made from that
// table.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "kernels/types.h"

namespace transmamba {

struct ModelConfig {
  std::int64_t vocab_size = 0;  ///< 0: the tokenizer's, from the data file
  std::int64_t hidden_size = 256;
  std::int64_t num_layers = 8;       ///< counts mixers and MLPs, each with its own norm and residual
  std::string layer_pattern = "T-";  ///< cycled over the layers: T a TransMamba mixer, - an MLP
  std::int64_t num_heads = 4;
  std::int64_t qk_head_dim = 0;           ///< n, even (RoPE pairs dimensions); 0: hidden_size / num_heads
  std::int64_t v_head_dim = 0;            ///< p; 0: hidden_size / num_heads
  std::int64_t ffn_hidden_size = 0;       ///< f; 0: 8/3 hidden_size rounded up to a multiple of 64
  std::int64_t conv_width = 4;            ///< w
  std::string transpoints = "V9";         ///< a schedule's name or numbers (and T), cycled over the mixers
  std::string transpoint_unit = "token";  ///< token, or fraction (of the sequence length)
  std::string gate = "ssm";               ///< which tokens SiLU(z) gates: ssm, all, none
  bool memory_converter = true;           ///< off: the SSM starts from zero at the TransPoint (ablation)
  double rope_theta = 10000;
  double norm_eps = 1e-5;
  bool tie_embeddings = false;
  double init_std = 0.02;

  char kind(std::int64_t layer) const;  ///< 'T' or '-'
  std::int64_t num_mixers() const;
  double output_init_std() const;  ///< of projections into the residual: init_std / sqrt(2 num_layers)
  bool operator==(const ModelConfig&) const = default;
};

struct DataConfig {
  std::filesystem::path
      path;  ///< tokens.h5 of `prepare`, or a Megatron .bin/.idx pair (either name, or its prefix)
  std::filesystem::path validation_path;  ///< empty: the validation split inside `path`, where there is one
  bool operator==(const DataConfig&) const = default;
};

struct TrainConfig {
  std::int64_t seq_len = 512;    ///< T
  std::int64_t micro_batch = 4;  ///< sequences a forward pass
  std::int64_t global_batch =
      4;  ///< sequences a step: a multiple of micro_batch; the rest is gradient accumulation
  std::int64_t steps = 100;
  std::int64_t seed = 0;
  std::string dtype = "float32";         ///< float32, float64, bfloat16
  std::string device = "cpu";            ///< cpu, cuda
  bool cuda_graphs = true;               ///< micro-batches on one GPU are captured once and replayed
  bool deterministic = true;             ///< the same run twice gives the same bits
  std::string recompute = "none";        ///< none, selective, full
  std::string bind = "auto";             ///< auto, none: of a rank to cores near its GPU (launch/binding.h)
  std::int64_t threads = 0;              ///< cores this rank uses; 0: all it may
  std::int64_t validate_every = 0;       ///< steps; 0: only at the end, where there is validation data
  std::int64_t validate_sequences = 32;  ///< at most
  std::int64_t max_skipped = 10;         ///< bad steps in a row that are skipped; one more ends the run
  double spike_guard = 0;                ///< a loss above this many times the recent mean is bad; 0: none is
  std::int64_t max_restarts = 0;         ///< by `transmamba launch`, after crashes
  std::int64_t stall_timeout = 1800;     ///< seconds in which a rank has to get on; 0: it need not
  bool operator==(const TrainConfig&) const = default;
};

/// How the ranks share the work (DESIGN of the mesh: parallel/mesh.h).
struct ParallelConfig {
  std::int64_t tp = 1;  ///< tensor: heads, MLP columns and vocabulary, and the tokens between layers
  std::int64_t cp = 1;  ///< context: the sequence
  std::int64_t pp = 1;  ///< pipeline: the layers
  std::int64_t dp = 0;  ///< data: the batch; 0: ranks / (tp cp pp)
  std::string cp_layout = "balanced";  ///< contiguous, zigzag, striped, balanced
  std::int64_t cp_chunk = 0;           ///< tokens of a stripe; 0: seq_len / (8 cp), at least 1
  std::int64_t virtual_stages = 1;     ///< model chunks a pipeline rank; above 1: interleaved 1F1B
  bool copy_engines = true;            ///< between the GPUs of a host
  double bucket_mb = 25;               ///< MiB of gradients a reduce-scatter
  std::filesystem::path machine;       ///< what `bench --quick` measured; empty: built-in numbers
  std::int64_t timeout = 600;          ///< seconds a rank waits for the others in one call before it gives up
  bool operator==(const ParallelConfig&) const = default;
};

struct OptimizerConfig {
  double lr = 2.5e-4;
  double min_lr = 2.5e-5;
  std::int64_t warmup_steps = 10;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;  ///< matrices only: projections, embedding, head
  double clip_grad = 1.0;     ///< largest global gradient norm, above 0
  bool operator==(const OptimizerConfig&) const = default;
};

struct CheckpointConfig {
  std::filesystem::path path;  ///< folder that gets a folder a step; empty: no checkpoints
  std::int64_t every = 0;      ///< steps; 0: only at the end
  std::int64_t keep = 3;       ///< newest checkpoints kept; 0: all
  std::string resume =
      "none";         ///< none, auto (the newest whole one in `path`, if any) or a checkpoint folder
  bool async = true;  ///< written while training goes on
  bool operator==(const CheckpointConfig&) const = default;
};

struct LogConfig {
  std::filesystem::path
      metrics;             ///< one JSON object a step; empty: metrics.jsonl in checkpoint.path, or none
  std::int64_t every = 1;  ///< steps between lines
  std::filesystem::path communication;  ///< table of all communication, as JSON; empty: communication.json in
                                        ///< checkpoint.path, or none
  std::int64_t communication_skip = 0;  ///< steps at the start of a run that the table leaves out
  std::int64_t profile = 0;             ///< steps that are measured; 0: none
  std::filesystem::path profile_path;   ///< folder of profile.json and trace.json; empty: checkpoint.path, or
                                        ///< none
  static constexpr std::int64_t kProfileWarmUp = 3;  ///< steps before those
  bool operator==(const LogConfig&) const = default;
};

/// What is to go wrong, for tests of what follows then (launch/fault.h).
struct FaultConfig {
  std::string kind = "none";  ///< none, kill, stop, hang, nan, slow, disk_full, flipped_byte
  std::int64_t step = 1;      ///< the first step in which it does, counted from 1
  std::int64_t steps = 1;     ///< how many
  std::int64_t rank = 0;
  double seconds = 1;  ///< that a slow rank loses in each
  bool operator==(const FaultConfig&) const = default;
};

struct Config {
  ModelConfig model;
  DataConfig data;
  TrainConfig train;
  ParallelConfig parallel;
  OptimizerConfig optimizer;
  CheckpointConfig checkpoint;
  LogConfig log;
  FaultConfig fault;

  /// Puts numbers in the place of zeros that stand for "from the other keys": qk_head_dim, v_head_dim and
  /// ffn_hidden_size. Throws Error where hidden_size cannot be shared out over the heads.
  void resolve();
  /// Values outside what a key allows, and contradictions between keys, e.g. an odd qk_head_dim or
  /// micro_batch not dividing global_batch, throw Error. Wants a resolved Config.
  void validate() const;
  /// What makes no sense in a training run, though every formula is defined: a model without a mixer, warm-up
  /// longer than the run, min_lr above lr. Throws Error.
  void validate_training() const;
  /// As an INI text that `parse_config` reads back to an equal Config. Printed, and stored in checkpoints.
  std::string to_ini() const;
  bool operator==(const Config&) const = default;
};

/// `file` may be empty (defaults). `overrides` are command line words: --section.key value or
/// --section.key=value. Unknown keys, wrong types and values outside what is allowed throw Error with the
/// key, the value, where it stood, what is allowed, and for an unknown key the nearest known one. A key may
/// stand once in the file and once on the command line, which wins. In the file # and ; start comments, so
/// no value can hold them. The result is resolved and valid.
Config parse_config(const std::filesystem::path& file, const std::vector<std::string>& overrides);
/// The same from an INI text; `origin` names it in errors.
Config parse_config_text(const std::string& ini, const std::string& origin,
                         const std::vector<std::string>& overrides);

/// All keys with defaults and help, for `transmamba train --help`.
std::string describe_config();

}  // namespace transmamba
