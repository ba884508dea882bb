#include "launch/slurm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "launch/child_process.h"
#include "tests/core/files.h"

namespace transmamba {
namespace {

using ::testing::AllOf;
using testing::error_of;
using testing::Folder;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::slurp;
using testing::spill;

constexpr auto kDebian =
    "MPI plugin types are...\n\tnone\n\tcray_shasta\n\tpmi2\n\tpmix\nspecific pmix plugin versions "
    "available: pmix_v4\n";
constexpr auto kBarePmi2 = "srun: MPI types are...\nsrun: none\nsrun: pmi2\n";
constexpr auto kExternalPmix =
    "mca:pmix:ext3x:version:\"mca:2.1.0\"\nmca:pmix:isolated:version:\"mca:2.1.0\"\n";
constexpr auto kOnlyPmi2 = "mca:pmix:s2:version:\"mca:2.1.0\"\nmca:pmix:isolated:version:\"mca:2.1.0\"\n";
constexpr auto kOpenMpi5 = "ompi:version:full:5.0.3\nmca:btl:sm:version:\"mca:2.1.0\"\n";

TEST(Pmi, IsWhatBothSrunAndMpiSpeak) {
  EXPECT_EQ(choose_pmi(kDebian, kExternalPmix), "pmix");
  EXPECT_EQ(choose_pmi(kDebian, kOpenMpi5), "pmix");
  EXPECT_EQ(choose_pmi(kDebian, kOnlyPmi2), "pmi2");
  EXPECT_EQ(choose_pmi(kBarePmi2, kOnlyPmi2), "pmi2");
  EXPECT_EQ(choose_pmi(kDebian, ""), "pmix");
  EXPECT_EQ(choose_pmi(kBarePmi2, ""), "pmi2");
}

TEST(Pmi, IsAskedForWhereThereIsNoneInCommon) {
  EXPECT_THAT(error_of([] { choose_pmi(kBarePmi2, kExternalPmix); }),
              AllOf(HasSubstr("expected pmix among"), HasSubstr("none srun: pmi2"), HasSubstr("--with-pmi")));
  EXPECT_THAT(error_of([] { choose_pmi("none\n", ""); }), HasSubstr("expected pmix or pmi2"));
  EXPECT_THAT(error_of([] { choose_pmi("specific versions: pmix_v4\n", kExternalPmix); }),
              HasSubstr("expected pmix"));
}

TEST(JobScript, HasOptionsReplacedOrAddedAndTheLineToRun) {
  const SlurmJob job{
      {{"nodes", "7"}, {"account", "me"}, {"exclusive", ""}}, {"/x/transmamba", "a b"}, "pmi2", 5};
  const std::string script = fill_in(kSlurmCpuTemplate, job);
  EXPECT_THAT(script,
              AllOf(HasSubstr("\n#SBATCH --nodes=7\n"), Not(HasSubstr("--nodes=2\n")),
                    HasSubstr("\n#SBATCH --account=me\n#SBATCH --exclusive\nrun=(/x/transmamba 'a b')\n"),
                    HasSubstr("\nmpi=pmi2\n"), HasSubstr("\nmax_restarts=5\n")));
  EXPECT_THAT(error_of([&] { fill_in("#SBATCH --nodes=1\n", job); }), HasSubstr("run="));
  EXPECT_THAT(error_of([&] { fill_in("run=()\n", job); }), HasSubstr("#SBATCH"));
}

TEST(JobScript, DiffersForGpusInItsHeadOnly) {
  const auto body = [](const std::string& text) { return text.substr(text.find("\nrun=")); };
  EXPECT_EQ(body(kSlurmCpuTemplate), body(kSlurmGpuTemplate));
  EXPECT_THAT(kSlurmGpuTemplate, HasSubstr("#SBATCH --gpus-per-node="));
  EXPECT_EQ(kSlurmGpuTemplate, slurp(std::string(TRANSMAMBA_SOURCE_DIR) + "/launch/slurm/gpu.sbatch"));
}

/// Runs the script of a job whose ranks take a step and end with `code`; gives its log, which has a line
/// where the job goes back to the queue.
std::string log_of_job(int code) {
  const Folder folder;
  const auto program = [&](const std::string& name, const std::string& text) {
    spill(folder / name, "#!/bin/sh\n" + text + "\n");
    std::filesystem::permissions(folder / name, std::filesystem::perms::owner_all);
  };
  program("srun", fmt::format("echo step 1; exit {}", code));
  program("scontrol", "echo \"scontrol $*\"");
  spill(folder / "job", fill_in(kSlurmCpuTemplate, {{}, {"train"}, "pmix", 1}));
  const std::string command =
      fmt::format("PATH={}:$PATH SLURM_JOB_ID=17 SLURM_JOB_NODELIST=n1 bash {} >{} 2>&1; echo code $?",
                  folder.path().string(), (folder / "job").string(), (folder / "log").string());
  const Captured ran = capture({"sh", "-c", command}, 30);
  return slurp(folder / "log") + ran.out;
}

TEST(JobScript, GoesBackToTheQueueAfterCrashesAndNotAfterTooManyBadSteps) {
  EXPECT_THAT(log_of_job(76), AllOf(HasSubstr("launch: crash 1, of at most 1"),
                                    HasSubstr("scontrol requeue 17\n"), HasSubstr("code 76\n")));
  EXPECT_THAT(log_of_job(77),
              AllOf(HasSubstr("launch: exit code 77 after"), HasSubstr("too many bad steps in a row"),
                    Not(HasSubstr("requeue")), HasSubstr("code 77\n")));
}

TEST(JobState, IsReadFromScontrol) {
  const JobState running = parse_job_state(
      "JobId=1 JobName=run UserId=root(0) JobState=PENDING Reason=BeginTime Dependency=(null) Requeue=1 "
      "Restarts=2 "
      "BatchFlag=1 Reboot=0 ExitCode=75:0 StdErr=/x/slurm-1.log StdOut=/x/slurm-1.log Power=\n");
  EXPECT_EQ(running.state, "PENDING");
  EXPECT_EQ(running.reason, "BeginTime");
  EXPECT_EQ(running.restarts, 2);
  EXPECT_EQ(running.exit_code, 75);
  EXPECT_EQ(running.log, "/x/slurm-1.log");
  EXPECT_FALSE(running.is_over());
  EXPECT_TRUE(parse_job_state("JobState=COMPLETED ExitCode=0:0").is_over());
  EXPECT_EQ(parse_job_state("JobState=CANCELLED ExitCode=0:15").exit_code, 143);
  EXPECT_EQ(parse_job_state("").exit_code, 0);
}

TEST(Slurm, IsExplained) {
  EXPECT_THAT(
      explain_slurm(
          "sbatch: error: If munged is up, restart with --num-threads=10\nsbatch: error: Munge encode "
          "failed: Failed to access \"/run/munge/munge.socket.2\": No such file or directory"),
      HasSubstr("start munged"));
  EXPECT_THAT(explain_slurm("srun: error: _establish_config_source: failed to fetch config"),
              HasSubstr("SLURM_CONF"));
  EXPECT_EQ(explain_slurm("Invalid partition"), "");
}

}  // namespace
}  // namespace transmamba
