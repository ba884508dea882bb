// Measures what core/machine.h asks for, on this rank's cores: each kernel at a few sizes of a model, fitted
// by its cost per call and per unit of work, and tried on sizes that were not fitted.
#pragma once

#include <string>
#include <vector>

#include "core/config.h"
#include "core/machine.h"
#include "core/tensor.h"

namespace transmamba {

/// A size that the fit did not see: a fit that is wrong shows here.
struct FitCheck {
  std::string what;
  double measured = 0, predicted = 0;  ///< seconds
};

/// Shapes are `config.model`'s (vocab_size 0 stands for 256) on up to train.seq_len tokens, at most 2048.
/// Takes about 100 times `seconds` for shapes whose kernels are quick. Links are the built-in ones.
Machine measure_machine(const Context& context, const Config& config, double seconds,
                        std::vector<FitCheck>& checks);

/// Coefficients >= 0 with sum_j coefficient[j] rows[i][j] close to seconds[i], in squares of relative errors.
/// At most 3 columns.
std::vector<double> fit(const std::vector<std::vector<double>>& rows, const std::vector<double>& seconds);

}  // namespace transmamba
