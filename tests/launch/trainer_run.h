// Runs of a small model in a folder of their own, and what they left.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <sstream>

#include "launch/trainer.h"
#include "tests/core/files.h"

namespace transmamba::testing {

namespace fs = std::filesystem;

inline constexpr const char* kIni = R"(
[model]
hidden_size = 16
num_layers = 2
num_heads = 2
ffn_hidden_size = 24
transpoints = 0,5,T
[train]
seq_len = 16
micro_batch = 2
global_batch = 2
steps = 12
threads = 1
[optimizer]
lr = 1e-2
min_lr = 1e-3
warmup_steps = 3
[checkpoint]
keep = 0
)";

/// What a run left.
struct Outcome {
  std::vector<double> losses, validation;    // from metrics.jsonl, in its order
  std::vector<std::vector<double>> tensors;  // parameters and both moments, from the last checkpoint
  std::int64_t first_step = 0, skipped = 0;
  TrainState state;
  ExitCode code = kExitFailed;
  std::string output, warnings;
};

class TrainerTest : public ::testing::Test {
 protected:
  TrainerTest() { write_data("tokens.h5", 2000, 200); }
  void write_data(const std::string& name, int tokens, int validation) const {
    TokenWriter writer(folder / name, *make_tokenizer("bytes"));
    const auto add = [&](Split split, int size) {
      std::vector<std::int32_t> ids;
      while (static_cast<int>(ids.size()) < size - 1) {  // words of two kinds: something to learn
        const char* word = ids.size() % 7 < 4 ? "tick " : "tock, ";
        ids.insert(ids.end(), word, word + std::strlen(word));
      }
      ids.resize(static_cast<std::size_t>(size - 1));
      writer.append(split, ids);
      writer.end_document(split);
    };
    add(Split::train, tokens);
    if (validation > 0) add(Split::validation, validation);
    writer.close();
  }

  /// Trains into folder / name. Further words are keys; they may repeat those above.
  Outcome train(const std::string& name, const std::vector<std::string>& keys = {}) const {
    const fs::path root = folder / name;
    std::vector<std::string> words = keys;
    const auto unless_given = [&](const std::string& key, const std::string& value) {
      for (const std::string& word : keys)
        if (word.starts_with("--" + key + "=")) return;
      words.push_back("--" + key + "=" + value);
    };
    unless_given("data.path", (folder / "tokens.h5").string());
    unless_given("checkpoint.path", root.string());
    const Config config = parse_config_text(kIni, "test", words);
    Outcome out;
    ::testing::internal::CaptureStdout();
    ::testing::internal::CaptureStderr();
    try {
      Session session(config.train);
      const auto world = self_communicator();
      Trainer trainer(config, session, *world, signals);
      out.code = trainer.run();
      out.state = trainer.state();
    } catch (...) {
      ::testing::internal::GetCapturedStdout();
      last_warnings = ::testing::internal::GetCapturedStderr();
      throw;
    }
    out.output = ::testing::internal::GetCapturedStdout();
    out.warnings = ::testing::internal::GetCapturedStderr();
    std::istringstream lines(slurp(root / "metrics.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      const auto json = nlohmann::json::parse(line);
      if (json.contains("loss")) {
        out.skipped = json["skipped"];
        out.losses.push_back(json["loss"].is_null() ? NAN : json["loss"].get<double>());
        if (out.losses.size() == 1) out.first_step = json["step"];
        EXPECT_EQ(json["step"], out.first_step + std::ssize(out.losses) - 1) << line;
      } else {
        out.validation.push_back(json["validation_loss"]);
      }
    }
    out.tensors = tensors_of(list_checkpoints(config.checkpoint.path).at(0));
    return out;
  }
  std::string failing(const std::string& name, const std::vector<std::string>& keys) const {
    return error_of([&] { train(name, keys); });
  }
  static std::vector<std::vector<double>> tensors_of(const fs::path& checkpoint) {
    const Hdf5File index = Hdf5File::open(checkpoint / "index.h5");
    std::vector<std::vector<double>> tensors;
    for (const std::string& name : index.datasets()) tensors.push_back(index.read_vector<double>(name));
    return tensors;
  }
  fs::path step(const std::string& name, int number) const {
    return folder / name / fmt::format("step_{:08}", number);
  }
  static void damage(const fs::path& file, double where) {
    std::string bytes = slurp(file);
    for (std::size_t i = 0; i < 64; ++i)
      bytes[static_cast<std::size_t>(where * static_cast<double>(bytes.size())) + i] ^= 0x55;
    spill(file, bytes);
  }
  static void expect_same(const Outcome& a, const Outcome& b) {
    EXPECT_EQ(a.first_step, 1);
    EXPECT_EQ(b.first_step, 1);
    EXPECT_EQ(a.losses, b.losses);
    EXPECT_EQ(a.validation, b.validation);
    EXPECT_EQ(a.tensors, b.tensors);
    EXPECT_EQ(a.state.step, b.state.step);
    EXPECT_EQ(a.state.consumed_sequences, b.state.consumed_sequences);
  }

  const Folder folder;
  mutable std::string last_warnings;
  const StopSignals* signals = nullptr;
};

}  // namespace transmamba::testing
