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
                    HasSubstr("; saved " + step("a", 4).string() +
                              ", with what step 1 left; the newest from before that: none; "),
                    HasSubstr("optimizer.lr")));
  EXPECT_EQ(tensors_of(step("a", 4)), tensors_of(step("a", 1)));
  // A run that was fine until then keeps its checkpoint, and its moments and parameters in it.
  const Outcome fine = train("b", {"--train.steps=4"});
  std::vector<std::string> on = keys;
  on.insert(on.end(), {"--checkpoint.resume=auto", "--checkpoint.every=0"});
  on.erase(on.begin() + 3);
  on.push_back("--checkpoint.keep=1");  // the other checkpoint has a finite loss and is of no use
  EXPECT_THAT(failing("b", on), AllOf(HasSubstr("must be finite"),
                                      HasSubstr("the newest from before that: " + step("b", 4).string())));
  EXPECT_EQ(tensors_of(step("b", 4)), fine.tensors);
  EXPECT_THAT(list_checkpoints(folder / "b"), ElementsAre(step("b", 8), step("b", 4)));
}

TEST_F(TrainerTest, SavesWhatTheLastFineStepLeftAndGoesOnAfterThoseThatWereBad) {
  train("fine", {"--checkpoint.every=1"});
  const auto bad = [](std::vector<std::string> more) {
    more.insert(more.end(), {"--fault.kind=nan", "--fault.step=6", "--checkpoint.every=4"});
    return more;
  };
  const Outcome skipping = train("skipping", bad({"--fault.steps=3"}));
  for (const std::string async : {"true", "false"}) {
    const auto keys = bad({"--fault.steps=100", "--train.max_skipped=2", "--checkpoint.keep=1"});
    std::vector<std::string> words = keys;
    words.push_back("--checkpoint.async=" + async);
    EXPECT_THROW(train(async, words), Diverged);
    EXPECT_THAT(list_checkpoints(folder / async), ElementsAre(step(async, 8), step(async, 4)));
    EXPECT_EQ(tensors_of(step(async, 8)), tensors_of(step("fine", 5)));
    const Outcome resumed = train(async, {"--checkpoint.resume=auto"});
    EXPECT_THAT(resumed.output, HasSubstr("resumed from " + step(async, 8).string()));
    EXPECT_EQ(resumed.state.consumed_sequences, skipping.state.consumed_sequences);
    EXPECT_EQ(resumed.tensors, skipping.tensors);
  }
}

TEST_F(TrainerTest, SavesNothingAfterBadStepsWhereNoneWasFine) {
  EXPECT_THAT(
      failing("a", {"--fault.kind=nan", "--fault.steps=100", "--train.max_skipped=1"}),
      HasSubstr("no step of this run was fine; there is nothing to save; the newest checkpoint: none"));
  EXPECT_THAT(list_checkpoints(folder / "a"), ElementsAre());
}

TEST_F(TrainerTest, SaysThatStepsWereBadWhereItCannotSaveEither) {
  std::signal(SIGXFSZ, SIG_IGN);  // as run_command() does
  const testing::FileLimit limit(16384);
  EXPECT_THAT(
      failing("a", {"--fault.kind=nan", "--fault.step=3", "--fault.steps=100", "--train.max_skipped=1"}),
      AllOf(HasSubstr("[train] step 4  skipped, 2 in a row"),
            HasSubstr("saving failed: [checkpoint] step 4 could not be saved"), HasSubstr("File too large"),
            HasSubstr("the newest checkpoint: none")));
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

TEST_F(TrainerTest, GoesOnWithoutAProfileThatCannotBeWritten) {
  std::signal(SIGXFSZ, SIG_IGN);
  const Outcome run =
      train("a", {"--log.profile=6", "--train.global_batch=8", "--fault.kind=disk_full", "--fault.step=10"});
  EXPECT_THAT(run.warnings, AllOf(HasSubstr((folder / "a/trace.json").string() + ": cannot write"),
                                  HasSubstr("File too large; training goes on")));
  EXPECT_FALSE(std::filesystem::exists(folder / "a/trace.json.part"));
  EXPECT_EQ(run.state.step, 12);
}

}  // namespace
}  // namespace transmamba
