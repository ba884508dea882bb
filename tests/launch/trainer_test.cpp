// Training: runs that go on where others stopped, and runs that must not begin.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/launch/trainer_run.h"

namespace transmamba {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::error_of;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::Outcome;
using testing::slurp;
using testing::spill;
using testing::TrainerTest;

TEST_F(TrainerTest, LowersTheLoss) {
  const Outcome run = train("a", {"--train.steps=40", "--train.validate_every=20"});
  ASSERT_EQ(run.losses.size(), 40U);
  EXPECT_NEAR(run.losses[0], std::log(257), 0.3);
  EXPECT_LT(run.losses[39], 0.6 * run.losses[0]);
  ASSERT_EQ(run.validation.size(), 2U);
  EXPECT_LT(run.validation[1], run.validation[0]);
  EXPECT_EQ(run.state.consumed_sequences, 80);
  EXPECT_THAT(run.output,
              AllOf(HasSubstr("step  1/40"), HasSubstr("step 40/40"), HasSubstr("validation loss")));
}

TEST_F(TrainerTest, AccumulatesGradientsLikeOneBigBatch) {
  const std::vector<std::string> small = {"--train.dtype=float64", "--train.global_batch=4",
                                          "--train.micro_batch=1"};
  const std::vector<std::string> big = {"--train.dtype=float64", "--train.global_batch=4",
                                        "--train.micro_batch=4"};
  const Outcome a = train("a", small), b = train("b", big);
  ASSERT_EQ(a.losses.size(), b.losses.size());
  for (std::size_t i = 0; i < a.losses.size(); ++i) EXPECT_NEAR(a.losses[i], b.losses[i], 1e-11) << i;
  ASSERT_EQ(a.tensors.size(), b.tensors.size());
  double largest = 0, size = 0;
  for (std::size_t i = 0; i < a.tensors.size(); ++i) {
    ASSERT_EQ(a.tensors[i].size(), b.tensors[i].size());
    for (std::size_t j = 0; j < a.tensors[i].size(); ++j) {
      largest = std::max(largest, std::abs(a.tensors[i][j] - b.tensors[i][j]));
      size = std::max(size, std::abs(a.tensors[i][j]));
    }
  }
  EXPECT_LT(largest, 1e-9 * size);  // Adam divides by roots of tiny moments, which enlarges rounding
  EXPECT_EQ(a.state.consumed_sequences, b.state.consumed_sequences);
  const Outcome other = train("c", {"--train.dtype=float64", "--train.global_batch=2"});
  EXPECT_GT(std::abs(other.losses[5] - a.losses[5]), 1e-6);  // the batch size does matter
}

TEST_F(TrainerTest, GivesTheSameBitsWithAnyNumberOfThreads) {
  const Outcome one = train("a", {"--train.threads=1"});
  expect_same(one, train("b", {"--train.threads=2"}));
  expect_same(one, train("c", {"--train.threads=1"}));
  EXPECT_NE(one.losses, train("d", {"--train.seed=1"}).losses);
}

TEST_F(TrainerTest, GoesOnAsIfItHadNotStopped) {
  const std::vector<std::string> keys = {"--checkpoint.every=5", "--train.validate_every=4"};
  std::vector<std::string> resume = keys;
  resume.push_back("--checkpoint.resume=auto");
  const Outcome whole = train("whole", keys);
  // As a process killed after step 7 leaves it: a checkpoint of step 5, metrics of 7 steps, the last line
  // torn.
  fs::create_directory(folder / "stopped");
  fs::copy(step("whole", 5), step("stopped", 5));
  const std::string metrics = slurp(folder / "whole/metrics.jsonl");
  spill(folder / "stopped/metrics.jsonl", metrics.substr(0, metrics.find("\"step\":8") - 20));
  const Outcome resumed = train("stopped", resume);
  expect_same(whole, resumed);
  EXPECT_THAT(resumed.output,
              AllOf(HasSubstr("resumed from " + step("stopped", 5).string()), Not(HasSubstr("step  5/12"))));
  EXPECT_EQ(resumed.warnings, "");
  // From a folder, into another one.
  const Outcome elsewhere =
      train("elsewhere", {"--checkpoint.resume=" + step("whole", 10).string(), "--train.validate_every=4"});
  EXPECT_EQ(elsewhere.tensors, whole.tensors);
  EXPECT_EQ(elsewhere.first_step, 11);
  EXPECT_EQ(elsewhere.losses, std::vector<double>(whole.losses.begin() + 10, whole.losses.end()));
  EXPECT_THAT(failing("x", {"--checkpoint.resume=" + step("whole", 11).string()}),
              AllOf(HasSubstr(step("whole", 11).string()), HasSubstr("found nothing")));
}

TEST_F(TrainerTest, StartsAnewWhereThereIsNothingToResume) {
  expect_same(train("a", {"--checkpoint.resume=auto"}), train("b"));
}

TEST_F(TrainerTest, DoesNothingWhenAllStepsAreTaken) {
  const Outcome first = train("a");
  const Outcome again = train("a", {"--checkpoint.resume=auto"});
  expect_same(first, again);
  EXPECT_THAT(again.output, HasSubstr("nothing to do: step 12 of 12 is reached"));
}

TEST_F(TrainerTest, PassesOverDamagedCheckpoints) {
  const std::vector<std::string> keys = {"--checkpoint.every=4"};
  const std::vector<std::string> resume = {"--checkpoint.every=4", "--checkpoint.resume=auto"};
  const Outcome whole = train("a", keys);
  fs::resize_file(step("a", 12) / "shard_00000.h5", 1000);
  fs::remove(step("a", 8) / "index.h5");
  const Outcome resumed = train("a", resume);
  expect_same(whole, resumed);
  EXPECT_THAT(resumed.output, HasSubstr("resumed from " + step("a", 4).string()));
  for (const int number : {8, 12})
    EXPECT_THAT(resumed.warnings, HasSubstr("warning: " + step("a", number).string() + " is passed over"));
  EXPECT_THAT(resumed.warnings, AllOf(HasSubstr("truncated"), HasSubstr("index.h5 is missing")));
  // All of them: weeks of training are not started anew because a disk was away.
  for (const int number : {4, 8, 12}) damage(step("a", number) / "shard_00000.h5", 0.5);
  EXPECT_THAT(failing("a", resume), AllOf(HasSubstr("none of the checkpoints can be read"),
                                          HasSubstr(step("a", 12).string()), HasSubstr("checksum")));
  EXPECT_TRUE(fs::exists(step("a", 12) / "index.h5"));
}

TEST_F(TrainerTest, RefusesCheckpointsThatDoNotFit) {
  const Outcome run = train("a");
  for (const std::string& from : {std::string("auto"), step("a", 12).string()}) {
    const std::string resume = "--checkpoint.resume=" + from;
    EXPECT_THAT(failing("a", {resume, "--model.hidden_size=32"}),
                AllOf(HasSubstr(step("a", 12).string()), HasSubstr("another model"),
                      HasSubstr("model.hidden_size is 16 there and 32 here")));
    EXPECT_THAT(failing("a", {resume, "--train.seed=3"}), HasSubstr("train.seed is 0 there and 3 here"));
    EXPECT_EQ(last_warnings, "");
  }
  EXPECT_EQ(tensors_of(step("a", 12)), run.tensors);
}

TEST_F(TrainerTest, SetsTheRunThatItReplacesAside) {
  train("a", {"--checkpoint.every=6"});
  const Outcome again = train("a", {"--train.steps=8"});
  EXPECT_THAT(again.warnings, AllOf(HasSubstr("starts after step 0"), HasSubstr(step("a", 12).string())));
  EXPECT_THAT(list_checkpoints(folder / "a"), ElementsAre(step("a", 8), step("a", 6)));
  EXPECT_TRUE(fs::exists(folder / "a/step_00000012.old/index.h5"));
}

TEST_F(TrainerTest, RefusesDataThatCannotBeTrainedOn) {
  write_data("tiny.h5", 16, 0);
  EXPECT_THAT(
      failing("a", {"--data.path=" + (folder / "tiny.h5").string()}),
      AllOf(HasSubstr("[data]"), HasSubstr("tiny.h5: expected at least the 17 tokens"), HasSubstr("got 16")));
  write_data("no_validation.h5", 100, 0);
  EXPECT_THAT(
      failing("a", {"--data.path=" + (folder / "no_validation.h5").string(), "--train.validate_every=1"}),
      AllOf(HasSubstr("train.validate_every = 1"), HasSubstr("no validation data")));
  write_data("tiny_validation.h5", 100, 10);
  EXPECT_THAT(failing("a", {"--data.path=" + (folder / "tiny_validation.h5").string()}),
              AllOf(HasSubstr("tiny_validation.h5: expected at least the 17 tokens"), HasSubstr("got 10")));
  EXPECT_THAT(failing("a", {"--model.vocab_size=200"}),
              AllOf(HasSubstr("model.vocab_size"), HasSubstr("257"), HasSubstr("200")));
  EXPECT_FALSE(fs::exists(folder / "a"));
}

/// A plan and a pretended GPU are enough.
TEST_F(TrainerTest, SaysHowMuchMoreMemoryThanAGpuHasARunNeeds) {
  const Config config = parse_config(std::string(TRANSMAMBA_SOURCE_DIR) + "/configs/transmamba-400m.cfg",
                                     {"--train.device=cuda", "--train.dtype=bfloat16"});
  gpu::Info gpu;
  gpu.name = "a small GPU";
  gpu.free_bytes = std::int64_t{12} << 30, gpu.total_bytes = std::int64_t{16} << 30;
  const std::string error = error_of([&] { check_memory(config, 1, gpu); });
  EXPECT_THAT(error,
              AllOf(HasSubstr("[memory]"), HasSubstr("a small GPU"), HasSubstr("12.0 GiB free of 16.0 GiB"),
                    HasSubstr("train.micro_batch (now 2)"), HasSubstr("train.seq_len (8192)"),
                    HasSubstr("train.recompute"), HasSubstr("parallel.tp")));
  EXPECT_THAT(error, ::testing::ContainsRegex("needs about 2[0-9].[0-9] GiB")) << "as README's 20.1 GiB";
  gpu.free_bytes = gpu.total_bytes = std::int64_t{139} << 30;
  EXPECT_NO_THROW(check_memory(config, 1, gpu));
}

TEST_F(TrainerTest, RefusesMegatronDataWithoutOrPastItsVocabulary) {
  // One document of 100 tokens of 16 bits: 0, 1, .., 99.
  std::string bin, idx("MMIDIDX\0\0\1\0\0\0\0\0\0\0\x8", 18);
  for (int i = 0; i < 100; ++i) bin += {static_cast<char>(i), '\0'};
  const auto number = [&](std::int64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) idx += static_cast<char>(value >> (8 * i) & 0xFF);
  };
  number(1, 8), number(2, 8), number(100, 4), number(0, 8), number(0, 8), number(1, 8);
  spill(folder / "m.bin", bin);
  spill(folder / "m.idx", idx);
  const std::string data = "--data.path=" + (folder / "m.bin").string();
  EXPECT_THAT(failing("a", {data}), AllOf(HasSubstr("model.vocab_size"), HasSubstr("m.bin")));
  EXPECT_THAT(failing("a", {data, "--model.vocab_size=50"}),
              AllOf(HasSubstr("[data]"), HasSubstr("/m"), HasSubstr("expected an id below 50, got ")));
  EXPECT_EQ(train("b", {data, "--model.vocab_size=100"}).losses.size(), 12U);
}

TEST_F(TrainerTest, SaysBeforeTheFirstStepThatItCannotSave) {
  spill(folder / "file", "");
  const std::string metrics = "--log.metrics=" + (folder / "m.jsonl").string();
  EXPECT_THAT(failing("a", {"--checkpoint.path=" + (folder / "file/a").string(), metrics}),
              AllOf(HasSubstr("checkpoint.path"), HasSubstr("Not a directory")));
  EXPECT_FALSE(fs::exists(folder / "m.jsonl"));
  EXPECT_THAT(failing("a", {"--log.metrics=" + (folder / "file/m.jsonl").string()}),
              AllOf(HasSubstr("[metrics]"), HasSubstr("m.jsonl"), HasSubstr("Not a directory")));
  EXPECT_THAT(failing("a", {"--log.metrics=/dev/full"}),
              AllOf(HasSubstr("[metrics] /dev/full"), HasSubstr("No space left")));
}

}  // namespace
}  // namespace transmamba
