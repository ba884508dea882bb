// Runs a sweep: its data, its child processes, and what they leave in files.
#pragma once

#include <filesystem>

#include "tools/scale/report.h"

namespace transmamba {

/// Tokens to train on. Where data.path names none, random ones in `file`, which goes when this does.
class ScaleData {
 public:
  /// Sets data.path and a missing model.vocab_size of all sizes. Nothing is written yet.
  ScaleData(std::vector<ScaleSize>& sizes, std::filesystem::path file);
  ~ScaleData();
  ScaleData(const ScaleData&) = delete;
  ScaleData& operator=(const ScaleData&) = delete;
  /// Enough for sequences of `seq_len` tokens.
  void write(std::int64_t seq_len);
  std::string in_words() const;

 private:
  std::filesystem::path file_;
  std::int64_t vocab_size_ = 0;  // of random tokens; 0: there are none
  bool written_ = false;
};

/// What a run of `steps` steps on `ranks` ranks left in its metrics file and its table of communication.
/// Throws Error where that is not a whole run.
Round read_round(const Config& config, int ranks);

/// All rounds of all runs that are possible and have not been done. The report is saved after each. False:
/// some failed.
bool run_sweep(const ScaleOptions& options, const std::filesystem::path& folder, ScaleReport& report);

}  // namespace transmamba
