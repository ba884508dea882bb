#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "launch/child_process.h"
#include "launch/process.h"
#include "tests/core/files.h"
#include "tools/commands.h"
#include "tools/launch/options.h"

namespace transmamba {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::error_of;
using testing::Folder;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using Words = std::vector<std::string>;

LaunchOptions parsed(Words words) {
  words.insert(words.begin(), std::string(TRANSMAMBA_SOURCE_DIR) + "/configs/tiny-cpu.cfg");
  words.insert(words.end(), {"--model.vocab_size", "256", "--train.micro_batch", "2"});
  return parse_launch_options(words);
}
LaunchPlan planned(const Words& words) { return plan_launch(parsed(words), "/x/transmamba"); }
std::string complaint(const Words& words) {
  return error_of([&] { planned(words); });
}

TEST(LaunchOptions, CountRanksOfHostsAndNodes) {
  EXPECT_EQ(planned({"--local"}).ranks, 1);
  EXPECT_EQ(planned({"--local", "--parallel.tp", "2", "--parallel.pp", "2"}).ranks, 4);
  EXPECT_EQ(planned({"--local", "-n", "2"}).ranks, 2);
  EXPECT_EQ(planned({"--hosts", "a:2,b:2"}).ranks, 4);
  EXPECT_EQ(planned({"--hosts", "a:2,b:2", "-n", "2"}).ranks, 2);
  const LaunchOptions job =
      parsed({"--nodes", "2", "--ranks-per-node=2", "--time", "1-0", "--sbatch", "--exclusive"});
  EXPECT_TRUE(job.slurm);
  EXPECT_EQ(job.ranks, 4);
  EXPECT_THAT(job.sbatch, ElementsAre(std::pair("time", "1-0"), std::pair("exclusive", "")));
}

TEST(LaunchOptions, ThatContradictEachOtherAreNamed) {
  EXPECT_THAT(complaint({}),
              HasSubstr("expected one of --local, --hosts LIST, --hostfile FILE and --nodes N"));
  EXPECT_THAT(complaint({"--local", "--nodes", "2"}), HasSubstr("got several"));
  EXPECT_THAT(complaint({"--nodes", "2"}), HasSubstr("either --ranks-per-node R or --gpus-per-node G"));
  EXPECT_THAT(complaint({"--nodes", "2", "--ranks-per-node", "1", "--gpus-per-node", "1"}),
              HasSubstr("either"));
  EXPECT_THAT(complaint({"--nodes", "0", "--ranks-per-node", "1"}),
              HasSubstr("--nodes: expected an integer"));
  EXPECT_THAT(complaint({"--local", "--time", "1:00"}), HasSubstr("--time is for jobs of SLURM"));
  EXPECT_THAT(complaint({"--hosts", "a:1", "-n", "2"}), HasSubstr("places for 1 ranks"));
  EXPECT_THAT(complaint({"--local", "--nods", "2"}), HasSubstr("unknown option --nods"));
  EXPECT_THAT(complaint({"--local", "-n"}), HasSubstr("-n"));
  EXPECT_THAT(complaint({"--local", "--local=2"}), HasSubstr("expected no value"));
}

TEST(LaunchPlan, WantsRanksThatFitTheConfiguration) {
  EXPECT_THAT(complaint({"--local", "-n", "4", "--parallel.tp", "3"}),
              HasSubstr("does not divide the 4 ranks"));
  EXPECT_THAT(
      complaint({"--nodes", "3", "--ranks-per-node", "1", "--checkpoint.path", "c", "--parallel.tp", "2"}),
      HasSubstr("does not divide the 3 ranks"));
  EXPECT_THAT(complaint({"--nodes", "1", "--gpus-per-node", "1", "--checkpoint.path", "c"}),
              AllOf(HasSubstr("train.device = cpu"), HasSubstr("--ranks-per-node")));
  EXPECT_THAT(complaint({"--nodes", "1", "--ranks-per-node", "1", "--checkpoint.path", "c", "--train.device",
                         "cuda"}),
              HasSubstr("--gpus-per-node"));
  EXPECT_THAT(complaint({"--nodes", "1", "--ranks-per-node", "1"}),
              HasSubstr("checkpoint.path: expected a folder"));
  EXPECT_THAT(complaint({"--local", "--train.max_restarts", "3"}), HasSubstr("train.max_restarts = 3"));
}

TEST(LaunchPlan, GoesOnFromTheNewestCheckpoint) {
  const LaunchPlan plan = planned({"--local", "--checkpoint.path", "c", "--profile", "3"});
  EXPECT_EQ(shell_words(plan.first), "/x/transmamba train " TRANSMAMBA_SOURCE_DIR
                                     "/configs/tiny-cpu.cfg --checkpoint.path c --log.profile 3 "
                                     "--model.vocab_size 256 --train.micro_batch 2 --checkpoint.resume auto");
  EXPECT_EQ(plan.first, plan.again);
  EXPECT_THAT(shell_words(planned({"--local"}).first), Not(HasSubstr("resume")));
}

TEST(LaunchPlan, TakesAnotherBeginningOnlyWhereRestartsWillNotMixRuns) {
  const Folder folder;
  const Words words = {"--local",
                       "--checkpoint.path",
                       folder.path().string(),
                       "--checkpoint.resume",
                       "none",
                       "--train.max_restarts",
                       "2"};
  const LaunchPlan plan = planned(words);
  EXPECT_THAT(shell_words(plan.first), HasSubstr("--checkpoint.resume none"));
  EXPECT_THAT(shell_words(plan.again), AllOf(HasSubstr("--checkpoint.resume auto"), Not(HasSubstr("none"))));
  std::filesystem::create_directory(folder / "step_00000005");
  EXPECT_THAT(complaint(words), HasSubstr("has checkpoints, from which a restart would go on"));
  EXPECT_THAT(complaint({"--nodes", "1", "--ranks-per-node", "1", "--checkpoint.path", "c",
                         "--checkpoint.resume=none"}),
              HasSubstr("expected auto"));
}

TEST(JobScript, IsMadeOfWhatWasAskedFor) {
  const Words words = {"--nodes",           "2",         "--ranks-per-node",     "2", "--partition",     "p",
                       "--checkpoint.path", "/shared/c", "--train.max_restarts", "4", "--train.threads", "3"};
  const std::string script = job_script(parsed(words), planned(words), "pmix");
  for (const char* line :
       {"--job-name=tiny-cpu", "--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=3", "--partition=p",
        "--output=/shared/c/slurm-%j.log", "--requeue", "--signal=USR1@120"})
    EXPECT_THAT(script, HasSubstr(std::string("\n#SBATCH ") + line + "\n"));
  EXPECT_THAT(script, AllOf(HasSubstr("\nmax_restarts=4\n"), HasSubstr("--checkpoint.resume auto)\n"),
                            Not(HasSubstr("gpus"))));
}

TEST(JobScript, StartsARankAGpu) {
  const Words words = {"--nodes",           "2",         "--gpus-per-node",      "4",
                       "--cpus-per-rank",   "6",         "--train.device",       "cuda",
                       "--checkpoint.path", "/shared/c", "--train.global_batch", "16"};
  EXPECT_EQ(planned(words).ranks, 8);
  const std::string script = job_script(parsed(words), planned(words), "pmix");
  EXPECT_THAT(script, HasSubstr("# Trains on the GPUs of several nodes, a rank each."));
  for (const char* line : {"--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--cpus-per-task=6"})
    EXPECT_THAT(script, HasSubstr(std::string("\n#SBATCH ") + line + "\n"));
  EXPECT_THAT(script, AllOf(HasSubstr("--train.device cuda"), Not(HasSubstr("gpus-per-node=8"))));

  Words all = {TRANSMAMBA_SOURCE_DIR "/configs/tiny-cpu.cfg",
               "--dry-run",
               "--mpi",
               "pmix",
               "--model.vocab_size",
               "256",
               "--train.micro_batch",
               "2"};
  all.insert(all.end(), words.begin(), words.end());
  Process process;
  ::testing::internal::CaptureStdout();
  const int code = launch(process, all);
  const std::string shown = ::testing::internal::GetCapturedStdout();
  EXPECT_EQ(code, 0);
  EXPECT_THAT(
      shown, AllOf(HasSubstr("would write /shared/c/launch.sbatch and run: sbatch"),
                   HasSubstr("\n#SBATCH --ntasks-per-node=4\n"), HasSubstr("\n#SBATCH --gpus-per-node=4\n")));
}

}  // namespace
}  // namespace transmamba
