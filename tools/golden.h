// Files of the reference implementation (tests/golden/transmamba_reference.py), read for `verify`.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/hdf5_file.h"
#include "core/tensor.h"

namespace transmamba {

/// The configuration that a golden file was made with, with command line words on top. train.micro_batch is
/// what each of `ranks` gets at once: one sequence in a pipeline, else its whole share, unless a word says
/// so. Throws Error where `golden` is no such file, or the words ask for other data than it has.
Config golden_config(const Hdf5File& golden, int ranks, const std::vector<std::string>& words);
bool has_curve(const Hdf5File& golden);

/// How far off a dataset may be.
struct Tolerance {
  double allowed = 0;
  double peer = 0;  ///< what PyTorch is off in the same type; 0: it was not asked
};
using Tolerances = std::function<Tolerance(const std::string& name)>;

/// For float64 and float32 numbers of ours; for bfloat16 twice what `<golden>.bf16.json` says by name that
/// PyTorch is off. Throws Error where that file or, when asked, a name in it is missing.
Tolerances tolerances_of(const Hdf5File& golden, DType dtype);

/// Prints a line a comparison and remembers whether all were good. The error is the norm of the difference
/// over the norm of the reference.
class Report {
 public:
  /// `prints`: whether this rank speaks for all.
  Report(const Hdf5File& golden, Tolerances tolerances, bool prints);

  /// `ours`, in host memory, against a dataset of the golden file. `whole` is the norm of the vector that
  /// this is a part of (all gradients, say). A difference below the rounding of `whole` in our type is none:
  /// that is how an exact zero, or a gradient that almost cancels, is told from a wrong one.
  void compare(const std::string& name, const ConstView& ours, double whole = 0);
  void compare(const std::string& name, const std::vector<double>& ours);
  int finish() const;  ///< the exit code

 private:
  const Hdf5File& golden_;
  Tolerances tolerances_;
  bool prints_;
  int count_ = 0, failed_ = 0;
};

/// Norm of all datasets of a group together.
double norm_of_all(const Hdf5File& golden, const std::string& group);

}  // namespace transmamba
