// Training that meets a signal, a bad step, a bad disk.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>

#include "tests/launch/trainer_run.h"

namespace transmamba {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::Outcome;
using testing::slurp;
using testing::TrainerTest;

TEST_F(TrainerTest, StopsWhenTheLossIsNotFinite) {
  const std::vector<std::string> keys = {"--optimizer.lr=1e30", "--optimizer.min_lr=0",
                                         "--optimizer.warmup_steps=0", "--checkpoint.every=1",
                                         "--train.max_skipped=2"};
  EXPECT_THAT(failing("a", keys),
              AllOf(HasSubstr("[train] step 4  skipped, 3 in a row"), HasSubstr("must be finite"),
                    HasSubstr("train.max_skipped = 2; step 1 was fine, with loss"),
                    HasSubstr("the newest checkpoint: " + step("a", 3).string()), HasSubstr("optimizer.lr")));
  // A run that was fine until then keeps its checkpoint, and its moments and parameters in it.
  const Outcome fine = train("b", {"--train.steps=4"});
  std::vector<std::string> on = keys;
  on.insert(on.end(), {"--checkpoint.resume=auto", "--checkpoint.every=0"});
  on.erase(on.begin() + 3);
  EXPECT_THAT(failing("b", on), HasSubstr("must be finite"));
  EXPECT_EQ(tensors_of(step("b", 4)), fine.tensors);
  EXPECT_THAT(list_checkpoints(folder / "b"), ElementsAre(step("b", 4)));
}

TEST_F(TrainerTest, StopsAfterASignalAndGoesOnAsIfItHadNot) {
  const Outcome whole = train("whole");
  {
    const StopSignals stop;
    signals = &stop;
    std::raise(SIGUSR1);
    const Outcome stopped = train("stopped", {"--train.validate_every=1"});
    EXPECT_EQ(stopped.code, kExitStopped);
    EXPECT_EQ(stopped.state.step, 1);
    EXPECT_THAT(list_checkpoints(folder / "stopped"), ElementsAre(step("stopped", 1)));
    EXPECT_THAT(stopped.output, HasSubstr("stopped by a signal after step 1; --checkpoint.resume auto"));
    EXPECT_TRUE(stopped.validation.empty()) << "there may be little time";
    // Nothing is left to stop in the last step.
    EXPECT_EQ(train("short", {"--train.steps=1", "--optimizer.warmup_steps=0"}).code, kExitDone);
    signals = nullptr;
  }
  const Outcome resumed = train("stopped", {"--checkpoint.resume=auto"});
  EXPECT_EQ(resumed.code, kExitDone);
  expect_same(whole, resumed);
}

TEST_F(TrainerTest, SavesBesideTrainingWhatItSavesAtOnce) {
  const std::vector<std::string> keys = {"--checkpoint.every=1"};
  const Outcome beside = train("a", keys), at_once = train("b", {keys[0], "--checkpoint.async=false"});
  expect_same(beside, at_once);
  ASSERT_EQ(list_checkpoints(folder / "a").size(), 12U);
  for (int number = 1; number <= 12; ++number)
    EXPECT_EQ(tensors_of(step("a", number)), tensors_of(step("b", number))) << number;
  EXPECT_THAT(beside.output, AllOf(HasSubstr("step 5  saved"), HasSubstr("s of it stall")));
  EXPECT_THAT(slurp(folder / "a/metrics.jsonl"), HasSubstr("\"stall_seconds\":0.0"));
}

TEST_F(TrainerTest, SkipsStepsWhoseGradientIsNotFinite) {
  const std::vector<std::string> keys = {"--checkpoint.every=1", "--fault.kind=nan", "--fault.step=5"};
  const Outcome fine = train("a", {keys[0]});
  std::vector<std::string> all_the_rest = keys;
  all_the_rest.push_back("--fault.steps=100");
  const Outcome bad = train("b", all_the_rest);
  EXPECT_EQ(bad.skipped, 8);
  EXPECT_EQ(bad.state.step, 12);
  EXPECT_EQ(bad.tensors, tensors_of(step("a", 4))) << "parameters and moments are as they were";
  const Outcome once = train("c", keys);
  EXPECT_EQ(once.skipped, 1);
  EXPECT_EQ(tensors_of(step("c", 5)), tensors_of(step("a", 4)));
  EXPECT_NE(once.tensors, bad.tensors) << "it goes on";
  EXPECT_THAT(once.output, AllOf(HasSubstr("step 5  skipped, 1 in a row"), HasSubstr("gradient norm nan"),
                                 HasSubstr("not finite: rank 0: the gradient of embedding.weight and 0 more"),
                                 HasSubstr("1 skipped")));
  EXPECT_THAT(fine.output, Not(HasSubstr("  skipped")));
}

TEST_F(TrainerTest, SkipsSpikesWhereThatIsAskedFor) {
  // Each later step is a spike where the guard is below 1.
  const Outcome run = train("a", {"--train.spike_guard=0.1", "--train.steps=14", "--checkpoint.every=1"});
  EXPECT_EQ(run.skipped, 4);
  EXPECT_THAT(run.output, HasSubstr("step 11  skipped, 1 in a row: loss"));
  EXPECT_EQ(run.tensors, tensors_of(step("a", 10)));
}

TEST_F(TrainerTest, PassesOverAShardWithAFlippedByte) {
  const Outcome whole = train("a", {"--checkpoint.every=4", "--fault.kind=flipped_byte", "--fault.step=8"});
  std::filesystem::remove_all(step("a", 12));
  const Outcome resumed = train("a", {"--checkpoint.every=4", "--checkpoint.resume=auto"});
  EXPECT_THAT(resumed.warnings, AllOf(HasSubstr("warning: " + step("a", 8).string() + " is passed over"),
                                      HasSubstr("checksum")));
  EXPECT_THAT(resumed.output, HasSubstr("resumed from " + step("a", 4).string()));
  EXPECT_EQ(resumed.losses, whole.losses);
  EXPECT_EQ(resumed.tensors, whole.tensors);
}

TEST_F(TrainerTest, GoesOnWithoutACheckpointThatCannotBeWritten) {
  std::signal(SIGXFSZ, SIG_IGN);  // as run_command() does
  const std::string limit = "--fault.kind=disk_full";
  const Outcome run =
      train("a", {"--checkpoint.every=4", "--checkpoint.async=false", limit, "--fault.step=8"});
  EXPECT_THAT(run.warnings, AllOf(HasSubstr("step 8 could not be saved; earlier checkpoints are untouched"),
                                  HasSubstr("File too large"), HasSubstr("training goes on")));
  EXPECT_THAT(list_checkpoints(folder / "a"), ElementsAre(step("a", 12), step("a", 4)));
  EXPECT_EQ(run.tensors, train("b").tensors);
}

}  // namespace
}  // namespace transmamba
