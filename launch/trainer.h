// The training loop: data, steps, validation, checkpoints, and what it says on its way.
#pragma once

#include <optional>
#include <string>

#include "core/config.h"
#include "core/metrics.h"
#include "core/tokens.h"
#include "launch/session.h"
#include "parallel/checkpoint.h"
#include "parallel/model.h"
#include "parallel/optimizer.h"
#include "parallel/step.h"

namespace transmamba {

class Trainer {
 public:
  /// Opens the data, makes the model and, as checkpoint.resume asks, takes over a checkpoint. Throws Error
  /// before any training if something is wrong. `config` gets the vocabulary size of the data where it leaves
  /// it to the data.
  Trainer(Config config, Session& session);

  /// Trains to train.steps, with validation and checkpoints on the way and at the end.
  void run();

  const Config& config() const { return config_; }
  const TrainState& state() const { return state_; }
  Model& model() { return *model_; }

 private:
  struct Data {
    std::unique_ptr<TokenDataset> training, validation;  // the latter may be null
  };
  void open_data();
  void resume();
  void check_fits(const Checkpoint& checkpoint) const;
  void take_over(const Checkpoint& checkpoint);
  void warn_of_later_checkpoints() const;
  void print_start();
  Batch batch(const TokenDataset& data, const SampleOrder& order, std::int64_t first,
              std::int64_t count) const;
  double validate() const;
  void save();

  Config config_;
  Session& session_;
  Data data_;
  std::optional<SampleOrder> order_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<MetricsLog> log_;
  TrainState state_;
  double peak_flops_ = 0;
};

}  // namespace transmamba
