// The kernels of a training step at the shapes of a model, for `transmamba bench kernels`.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/tensor.h"

namespace transmamba {

/// Random tensors for one call of a kernel. Counts what any implementation must move: each input is read
/// once, each output written once.
class Buffers {
 public:
  /// Draws from stream `draw` of random numbers: another one gives other numbers.
  Buffers(const Context& context, std::uint64_t draw) : context_(context), draw_(draw) {}

  /// Of T unless a type says otherwise; uniform in [low, high).
  Tensor make(const Shape& shape) { return make(shape, context_.dtype); }
  Tensor make(const Shape& shape, DType dtype, double low = -1, double high = 1);
  Tensor statistics(const Shape& shape, double low = -1, double high = 1) {
    return make(shape, context_.statistics(), low, high);
  }
  /// Whole numbers: index times a prime, modulo `count`.
  Tensor make_tokens(const Shape& shape, std::int64_t count);
  /// Words as often as Zipf's law has them: number k is 1 / (k + 1) as likely as number 0. Says how many
  /// there are.
  Tensor make_text(const Shape& shape, std::int64_t count, std::int64_t& distinct);

  Tensor reads(const Tensor& x) { return count(x, 1); }
  Tensor writes(const Tensor& x) { return count(x, 1); }
  Tensor updates(const Tensor& x) { return count(x, 2); }

  const Context& context() const { return context_; }
  double bytes() const { return bytes_; }

 private:
  Tensor count(const Tensor& x, int times) {
    bytes_ += static_cast<double>(times) * static_cast<double>(x.numel() * size_of(x.dtype()));
    return x;
  }
  const Context& context_;
  std::uint64_t draw_;
  double bytes_ = 0;
};

using KernelCall = std::function<void()>;

struct KernelCase {
  std::string name;   ///< "ssd_scan_backward"
  std::string shape;  ///< for people
  double flops = 0;   ///< those that matrix units can do; a multiplication and an addition are two
  /// Tensors of one call, and the call.
  std::function<KernelCall(Buffers&)> prepare;
};

/// Numbers that shapes are made of, by the letters of kernels/types.h. Tensors lie as in the model: q, k and
/// v are parts of rows of `channels` numbers; in front of the convolution of `projected`, where z and dt
/// follow.
struct ModelShapes {
  explicit ModelShapes(const Config& config);
  std::int64_t b, t, d, h, n, p, f, w, V;
  std::int64_t channels, projected;  ///< rows begin at multiples of 16 bytes
  double theta, eps;

  Tensor q_of(const Tensor& packed) const { return packed.slice(2, 0, h * n).split(2, n); }
  Tensor k_of(const Tensor& packed) const { return packed.slice(2, h * n, 2 * h * n).split(2, n); }
  Tensor v_of(const Tensor& packed) const { return packed.slice(2, 2 * h * n, channels).split(2, p); }
  Tensor z_of(const Tensor& projected) const {
    return projected.slice(2, channels, channels + h * p).split(2, p);
  }
  Tensor dt_of(const Tensor& projected) const {
    return projected.slice(2, channels + h * p, channels + h * p + h);
  }
  std::string rows(std::int64_t width) const;  ///< "2 x 8192 x 1536"
  std::string heads() const;                   ///< "2 x 8192, 16 heads of 96 and 96"
  /// `each` for every head of every token.
  double per_head(std::int64_t each) const {
    return static_cast<double>(b * t * h) * static_cast<double>(each);
  }
};

struct KernelCases {
  void add(std::string name, std::string shape, double flops, std::function<KernelCall(Buffers&)> prepare);
  std::vector<KernelCase> all;
};

// Products that any algorithm must do count as flops: half of attention's square, and not what a chunked scan
// does on top of the recurrence.
void add_product_cases(const ModelShapes& m, KernelCases& cases);
void add_attention_cases(const ModelShapes& m, KernelCases& cases);  ///< all tokens attend
void add_ssd_cases(const ModelShapes& m, KernelCases& cases);  ///< all are summarised (converted), or scanned
void add_activation_cases(const ModelShapes& m, KernelCases& cases);  ///< the TransPoint is half way
void add_norm_cases(const ModelShapes& m, KernelCases& cases);
void add_vocabulary_cases(const ModelShapes& m, KernelCases& cases);
void add_upkeep_cases(const ModelShapes& m, KernelCases& cases);  ///< as many parameters as the embedding has

/// All of them. `config` has a vocabulary.
std::vector<KernelCase> kernel_cases(const Config& config);

}  // namespace transmamba
