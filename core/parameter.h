// The parameters of one rank: named slices of flat buffers, of values and of gradients. Matrices, to which
// weight decay applies, have values of type T, all others, and all gradients, of type S (kernels/types.h).
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/shard_spec.h"
#include "core/tensor.h"

namespace transmamba {

/// Distribution of initial values. Each value is a pure function of (seed, parameter name, global index), so
/// every layout of ranks starts bit-identical.
struct Init {
  enum class Kind { constant, normal, uniform, step_bias, log_uniform };
  Kind kind = Kind::constant;
  double a = 0, b = 0;

  static Init constant(double value) { return {Kind::constant, value, 0}; }
  static Init normal(double std) { return {Kind::normal, std, 0}; }
  static Init uniform(double low, double high) { return {Kind::uniform, low, high}; }
  /// softplus(value) is log-uniform in [low, high]: Mamba-2's dt_bias.
  static Init step_bias(double low, double high) { return {Kind::step_bias, low, high}; }
  /// log of a uniform value in [low, high]: Mamba-2's A_log.
  static Init log_uniform(double low, double high) { return {Kind::log_uniform, low, high}; }
};

/// Over which ranks a gradient must be summed beside those that hold the same parameters (data): with tensor
/// parallelism each rank's norms see its own tokens only, and tied embeddings of a pipeline are used at both
/// ends.
enum class GradientSum : std::uint8_t { none, tp, ends };

/// Weight decay is for matrices: projections, embedding, head. Not norms, convolutions, biases, A_log, D.
struct ParameterSpec {
  std::string name;  ///< that of the reference and of every file, e.g. layers.0.mixer.q_proj.weight
  ShardSpec shard;   ///< global shape, and this rank's slice of it
  Init init;
  bool weight_decay = false;
  bool primary = true;  ///< false: a copy; another rank holds the one that counts in norms and checkpoints
  GradientSum summed_over = GradientSum::none;
};

struct Parameter : ParameterSpec {
  std::int64_t offset = 0;  ///< of its first element in the flat order
  View value, grad;         ///< the local slice, contiguous
};

/// A run of the flat order whose gradients are summed, and whose optimizer state is cut up, together. It is
/// a multiple of the number of data ranks, and data rank i owns its i-th part. All its parameters are alike
/// in what is said here; between them are gaps, whose values and gradients are zero.
struct Bucket {
  std::int64_t begin = 0, end = 0;
  GradientSum summed_over = GradientSum::none;
  bool weight_decay = false, primary = true;
  View values = {}, grads = {};  ///< (end - begin)
};

/// A run of one parameter's elements, row major over its local shape, that a data rank owns.
struct OwnedRun {
  std::size_t parameter = 0;        ///< index
  std::int64_t begin = 0, end = 0;  ///< of the parameter's elements
  std::int64_t offset = 0;          ///< of the first in the flat order
  std::int64_t owned_offset = 0;    ///< of the first among all that the data rank owns, buckets in order
};

class ParameterStore;

/// Handle on parameters added together. They lie one after the other in memory, so that those of a layer that
/// read the same input (q, k, v, z and dt projections, say) are one matrix: one product instead of five.
class Pack {
 public:
  Pack() = default;
  View value() const;  ///< all of them, stacked along dim 0
  View grad() const;
  View value(int i) const;  ///< the i-th
  View grad(int i) const;

 private:
  friend class ParameterStore;
  Pack(ParameterStore* store, std::size_t first, std::size_t count)
      : store_(store), first_(first), count_(count) {}
  View stacked(bool grads) const;
  ParameterStore* store_ = nullptr;
  std::size_t first_ = 0, count_ = 0;
};

/// Layers declare their parameters with add(); allocate() then lays them out. Not movable: packs point at it.
class ParameterStore {
 public:
  ParameterStore() = default;
  ParameterStore(const ParameterStore&) = delete;
  ParameterStore& operator=(const ParameterStore&) = delete;

  /// Specs of a pack must agree in every local dim but the first, and in what a bucket is alike in.
  Pack add(std::vector<ParameterSpec> specs);
  /// `parts`: how many data ranks share the optimizer's state. Buckets have gradients of `bucket_bytes`, and
  /// what their last pack has more. What `context` points at must outlive the store.
  void allocate(const Context& context, std::int64_t bucket_bytes = 25 << 20, int parts = 1);
  /// Sees elements [begin, begin + its size) of a parameter, by index, as type S has them, in host memory.
  using Values = std::function<void(std::size_t parameter, std::int64_t begin, const Tensor& values)>;
  /// Draws the values; `unrounded` is for who keeps more of them than the store does.
  void initialise(std::int64_t seed, const Values& unrounded = {});
  void zero_grad(const Stream& stream);

  const std::vector<Parameter>& parameters() const { return parameters_; }
  const std::vector<Bucket>& buckets() const { return buckets_; }
  std::size_t bucket_of(std::size_t parameter) const { return bucket_of_[parameter]; }
  int parts() const { return parts_; }
  const Context& context() const { return context_; }  ///< that of allocate()
  /// What data rank `part` owns, in the flat order; and how many elements (gaps included) that spans.
  std::vector<OwnedRun> owned(int part) const;
  std::int64_t owned_size() const { return grads_.numel() / parts_; }
  /// In the flat order, where all values are of type S. Packs start at multiples of 128 bytes.
  const Tensor& values() const;
  const Tensor& grads() const { return grads_; }
  /// The part of a flat tensor laid out like grads() that belongs to one parameter, in its shape.
  View slice(const Tensor& flat, const Parameter& parameter) const;
  std::int64_t count() const;  ///< elements of the local slices, gaps left out

 private:
  friend class Pack;
  std::vector<Parameter> parameters_;
  std::vector<std::size_t> pack_starts_;
  std::vector<Bucket> buckets_;
  std::vector<std::size_t> bucket_of_;
  int parts_ = 1;
  Context context_;
  std::int64_t narrow_ = 0;  // the first elements, which matrices_ has; values_ has the rest
  Tensor matrices_, values_, grads_;

  void lay_out(std::int64_t bucket_elements);
  View values_of(bool matrix, std::int64_t begin, std::int64_t end) const;
};

}  // namespace transmamba
