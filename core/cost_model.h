// What a model costs: parameters, and the floating-point operations (FLOPs) that its mathematics asks for.
// They are the model's and not an implementation's, so recomputing an activation makes no run look faster.
#pragma once

#include <cstdint>

#include "core/config.h"

namespace transmamba {

/// FLOPs of a forward pass over one sequence of T tokens. A multiply and an add count two. Letters as in
/// kernels/types.h, TransPoint P. Convolutions, norms, gates, softmax and RoPE are not counted.
struct ForwardFlops {
  double projections = 0;  ///< 2 T d h (2n + 3p + 1) a mixer: q, k (n), v, z, out (p) and dt (1)
  double mlps = 0;         ///< 6 T d f an MLP: gate, up, down
  double head = 0;         ///< 2 T d V
  double attention = 0;  ///< h (n + p) P^2 a mixer: Q K^T (2 n P^2) and its product with V (2 p P^2), halved
                         ///< as causal
  double ssm = 0;        ///< 4 h n p (T - P) a mixer: state update and readout, 2 n p each
  double converter = 0;  ///< 2 h n p P a mixer with 0 < P < T, where memory_converter is on

  double total() const { return projections + mlps + head + attention + ssm + converter; }
  ForwardFlops& operator+=(const ForwardFlops& other);
};

/// One layer's; `transpoint` counts for a mixer ('T') only.
ForwardFlops layer_flops(const ModelConfig& model, char kind, std::int64_t seq_len, std::int64_t transpoint);
/// The whole model's, head included. Throws Error if a size (vocab_size too) is not a resolved number.
ForwardFlops forward_flops(const ModelConfig& model, std::int64_t seq_len);

/// Forward and backward of `sequences` sequences: backward costs twice the forward, so 3 times forward_flops.
double training_flops(const ModelConfig& model, std::int64_t seq_len, std::int64_t sequences);

struct ParameterCounts {
  std::int64_t embedding = 0;
  std::int64_t mixers = 0;  ///< each h (d (2n + 3p + 1) + (w + 1) (2n + p) + p + 3): projections, conv,
                            ///< out_norm, and dt_bias, A_log, D
  std::int64_t mlps = 0;    ///< each 3 d f
  std::int64_t norms = 0;   ///< d a layer, and the final one
  std::int64_t head = 0;    ///< 0 where tied to the embedding

  std::int64_t total() const { return embedding + mixers + mlps + norms + head; }
};

/// Throws Error if a size (vocab_size too) is not a resolved number.
ParameterCounts parameter_counts(const ModelConfig& model);
std::int64_t parameter_count(const ModelConfig& model);  ///< the total

}  // namespace transmamba
