#include "launch/mpirun.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <unistd.h>

#include <array>
#include <csignal>
#include <thread>

#include "launch/child_process.h"
#include "tests/core/files.h"

namespace transmamba {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ContainsRegex;
using ::testing::ElementsAre;
using testing::error_of;
using testing::Folder;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using testing::slurp;
using testing::spill;
using ::testing::StartsWith;
using Words = std::vector<std::string>;

TEST(Hosts, AreReadFromAListAndFromAHostfile) {
  EXPECT_THAT(parse_hosts("a:4,b.cluster:2"), ElementsAre(HostSlots{"a", 4}, HostSlots{"b.cluster", 2}));
  const Folder folder;
  spill(folder / "hosts", "# two\na slots=4\n\nb slots=2 # small\n");
  EXPECT_THAT(read_hostfile(folder / "hosts"), ElementsAre(HostSlots{"a", 4}, HostSlots{"b", 2}));
}

TEST(Hosts, ThatMeanNothingAreNamed) {
  for (const char* list : {"a", "a:0", "a:x", ":4", "a:4,", "a:4,,b:4"})
    EXPECT_THAT(error_of([&] { parse_hosts(list); }), AllOf(HasSubstr("a:4,b:4"), HasSubstr(list))) << list;
  EXPECT_THAT(error_of([&] { parse_hosts("a:4,a:4"); }), HasSubstr("host a is given twice"));
  EXPECT_THAT(error_of([&] { parse_hosts(""); }), HasSubstr("at least one host"));
  const Folder folder;
  spill(folder / "hosts", "a 4\n");
  EXPECT_THAT(error_of([&] { read_hostfile(folder / "hosts"); }), HasSubstr("got \"a 4\""));
  EXPECT_THAT(error_of([&] { read_hostfile(folder / "absent"); }), HasSubstr("absent"));
}

TEST(Mpirun, GivesRanksOfSeveralHostsWhatTheyNeed) {
  setenv("NCCL_TEST_ONLY", "1", 1);
  const Words words = mpirun_words(6, {{"a", 4}, {"b", 2}});
  unsetenv("NCCL_TEST_ONLY");
  const std::string line = shell_words(words);
  EXPECT_THAT(line,
              HasSubstr("mpirun -np 6 --host a:4,b:2 --wdir " + std::filesystem::current_path().string()));
  EXPECT_THAT(line, AllOf(HasSubstr("--mca oob_tcp_keepalive_time"), HasSubstr("-x NCCL_TEST_ONLY")));
  setenv("OMPI_MCA_oob_tcp_keepalive_time", "99", 1);
  EXPECT_THAT(mpirun_words(1, {{"a", 1}}), Not(Contains("oob_tcp_keepalive_time")));  // the user's own holds
  unsetenv("OMPI_MCA_oob_tcp_keepalive_time");
}

TEST(Mpirun, LetsMoreRanksThanCoresShareThem) {
  EXPECT_THAT(shell_words(mpirun_words(4096, {})), HasSubstr("mpi_yield_when_idle 1"));
  EXPECT_THAT(mpirun_words(1, {}), ElementsAre("mpirun", "-np", "1"));
}

TEST(Restarts, FollowCrashesAndNotMistakes) {
  const auto worth = [](int code, bool stepped, bool killed = false, bool before = false) {
    return is_worth_restarting({.code = code, .stepped = stepped, .killed = killed}, before);
  };
  EXPECT_TRUE(worth(137, true));
  EXPECT_TRUE(worth(1, true));
  EXPECT_TRUE(worth(76, false));              // a rank was lost, says another
  EXPECT_TRUE(worth(137, false, true));       // killed while it started
  EXPECT_TRUE(worth(1, false, false, true));  // a restart that met a host that is still gone
  EXPECT_FALSE(worth(1, false));              // a configuration that does not fit
  EXPECT_FALSE(worth(134, false));            // mpirun's own, of a program that is not there
  for (const int code : {0, 2, 75, 77}) EXPECT_FALSE(worth(code, true, true, true)) << code;
  EXPECT_FALSE(is_worth_restarting({.code = 1, .stepped = true, .asked = true}, true));
}

/// Runs a script as if it were mpirun, with a file `n` that counts its starts.
struct Started {
  int code = 0;
  std::string out, err;
  std::size_t starts = 0;
};
Started start(const std::string& script, std::int64_t max_restarts) {
  const Folder folder;
  const std::string count = fmt::format("echo $1 >>{0}; n=$(wc -l <{0}); ", (folder / "n").string());
  Started s;
  ::testing::internal::CaptureStdout(), ::testing::internal::CaptureStderr();
  s.code = run_with_restarts({"sh", "-c", count + script, "sh", "first"},
                             {"sh", "-c", count + script, "sh", "again"}, max_restarts);
  s.out = ::testing::internal::GetCapturedStdout(), s.err = ::testing::internal::GetCapturedStderr();
  const std::string log = slurp(folder / "n");
  s.starts = static_cast<std::size_t>(std::count(log.begin(), log.end(), '\n'));
  EXPECT_TRUE(log.starts_with("first\n") && log.find("first", 1) == std::string::npos) << log;
  return s;
}

TEST(Restarts, GoOnUntilARunIsDone) {
  const Started s = start("echo step 1; [ $n = 3 ] || exit 137", 5);
  EXPECT_EQ(s.code, 0);
  EXPECT_EQ(s.starts, 3U);
  EXPECT_THAT(s.out, HasSubstr("step 1\nstep 1\nstep 1\n"));
  EXPECT_THAT(s.err, AllOf(HasSubstr("launch: exit code 137 after 0."), HasSubstr("restart 1 of at most 5"),
                           HasSubstr("restart 2 of at most 5")));
}

TEST(Restarts, EndAfterAsManyAsAreAllowed) {
  const Started s = start("echo step 1; exit 9", 2);
  EXPECT_EQ(s.code, 9);
  EXPECT_EQ(s.starts, 3U);
  EXPECT_THAT(s.err, HasSubstr("train.max_restarts = 2: the end"));
}

TEST(Restarts, DoNotRepeatAMistake) {
  const Started s = start("printf 'transmamba: [config] wrong' >&2; exit 1", 3);
  EXPECT_EQ(s.code, 1);
  EXPECT_EQ(s.starts, 1U);
  EXPECT_THAT(s.err, HasSubstr("[config] wrong\nlaunch: not restarted: exit code 1 before the first step"));
  EXPECT_EQ(start("echo step 1; exit 75", 3).starts, 1U);
  EXPECT_EQ(start("exit 2", 3).starts, 1U);
}

TEST(Restarts, DoNotFollowTooManyBadSteps) {
  const Started s = start("echo step 1; exit 77", 3);
  EXPECT_EQ(s.code, 77);
  EXPECT_EQ(s.starts, 1U);
  EXPECT_EQ(s.err,
            "launch: not restarted: exit code 77 says too many bad steps in a row, which a restart does not "
            "mend\n");
}

TEST(Restarts, AreNotSpokenOfWhereNobodyAskedForThem) {
  const Started s = start("echo step 1; exit 1", 0);
  EXPECT_EQ(s.code, 1);
  EXPECT_THAT(s.err, IsEmpty());
}

TEST(Mpirun, SaysWhichRankASignalHasEnded) {
  const std::string line =
      "mpirun noticed that process rank 2 with PID 0 on node h2.cluster exited on signal 9 (Killed).";
  EXPECT_EQ(read_death(line), "rank 2 on host h2.cluster was killed by signal 9 (Killed)");
  EXPECT_EQ(
      read_death(
          "mpirun noticed that process rank 13 with PID 4711 on node a exited on signal 11 (Segmentation "
          "fault)."),
      "rank 13 on host a was killed by signal 11 (Segmentation fault)");
  EXPECT_EQ(read_death("mpirun noticed that process rank 0 with PID 0 on node a exited on signal 64."),
            "rank 0 on host a was killed by signal 64");
  EXPECT_EQ(read_death("mpirun detected that one or more processes exited with non-zero status"), "");
}

/// Is killed as mpirun says it, in its nth start after n lines of steps.
const std::string kDies =
    "for i in $(seq $n); do echo \"step  $((100 + i))/200  loss 1\"; done; "
    "echo 'mpirun noticed that process rank 2 with PID 0 on node a exited on signal 9 (Killed).' >&2; exit "
    "137";

TEST(Restarts, SayWhichRankWasKilledAndAfterWhichStep) {
  const Started s = start(kDies, 1);
  EXPECT_EQ(s.starts, 2U);
  EXPECT_THAT(s.err,
              AllOf(ContainsRegex("launch: exit code 137 after [0-9.]+ s, as rank 2 on host a was killed by "
                                  "signal 9 \\(Killed\\) after step 101: restart 1 of at most 1"),
                    HasSubstr("signal 9 (Killed) after step 102, and train.max_restarts = 1: the end")));
  EXPECT_THAT(start(kDies, 0).err, HasSubstr("was killed by signal 9 (Killed) after step 101\n"));
  EXPECT_THAT(start("n=0; " + kDies, 0).err, HasSubstr("(Killed) before the first step's line\n"));
}

TEST(Restarts, SayNothingOfARankThatWasKilledWhereAnotherSaysWhy) {
  EXPECT_THAT(start("echo 'transmamba: rank 1: [x] y' >&2; " + kDies, 0).err, Not(HasSubstr("launch: ")));
}

/// Ends with 75 a while after SIGUSR1, with 143 at SIGTERM.
const std::string kStops =
    "echo step 1; trap 'usr1=1' USR1; trap 'exit 143' TERM; "
    "for i in $(seq 200); do sleep 0.05; [ -z $usr1 ] || left=$((${left:-20} - 1)); [ \"$left\" = 0 ] && "
    "exit 75; done; exit 1";

TEST(Restarts, EndAtASignalWhichReachesTheRanksAsUsr1AndThenAsTerm) {
  for (const auto& [apart, code] : std::vector<std::pair<int, int>>{{100, 75}, {600, 143}}) {
    std::thread both([ms = apart] {
      std::this_thread::sleep_for(std::chrono::milliseconds(400));
      kill(getpid(), SIGINT);
      std::this_thread::sleep_for(std::chrono::milliseconds(ms));
      kill(getpid(), SIGTERM);
    });
    const Started s = start(kStops, 3);
    both.join();
    EXPECT_EQ(s.code, code) << "signals " << apart << " ms apart: those of half a second are one";
    EXPECT_EQ(s.starts, 1U);
  }
}

TEST(ShownProcess, LosesNoOutputWhereSignalsComeWhileItWaitsForAReader) {
  std::array<int, 2> ends{};
  ASSERT_EQ(pipe(ends.data()), 0);
  std::fflush(stdout);
  std::signal(SIGUSR1, SIG_IGN);  // before and after it is counted
  const int before = dup(STDOUT_FILENO);
  dup2(ends[1], STDOUT_FILENO), close(ends[1]);
  std::string got;
  std::thread reader([&, writer = pthread_self()] {
    std::array<char, 4096> bytes{};
    for (ssize_t count = 1; count > 0;) {
      // Two, of which the second finds it in a write that has not got anywhere. None before the child ignores
      // them.
      for (int i = 0; i < 2 && !got.empty(); ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
        pthread_kill(writer, SIGUSR1);
      }
      count = read(ends[0], bytes.data(), bytes.size());
      got.append(bytes.data(), static_cast<std::size_t>(std::max<ssize_t>(count, 0)));
    }
  });
  std::size_t lines = 0;
  const ShownResult result = run_shown({"sh", "-c", "trap '' USR1 TERM; seq 100000"},
                                       [&](const auto&, bool) { return ++lines > 0; });
  dup2(before, STDOUT_FILENO), close(before);
  reader.join(), close(ends[0]);
  std::signal(SIGUSR1, SIG_DFL);
  std::string wanted;
  for (int i = 1; i <= 100000; ++i) wanted += std::to_string(i) + "\n";
  EXPECT_TRUE(got == wanted) << "expected " << wanted.size() << " bytes, got " << got.size();
  EXPECT_EQ(lines, 100000U);
  EXPECT_TRUE(result.ok && result.asked);
}

TEST(Mpirun, IsExplainedWithTheHostAndWhatToDo) {
  EXPECT_THAT(explain_mpirun("mpirun was unable to launch the specified application as it could not access\n"
                             "or execute an executable:\n\nExecutable: /x/transmamba\nNode: h2\n"),
              HasSubstr("host h2 has no program /x/transmamba: it has to be at that path"));
  EXPECT_THAT(
      explain_mpirun("could not\nchange to the specified working directory:\n\nWorking directory: /x/y\n"
                     "Node: h2\n"),
      HasSubstr("host h2 has no folder /x/y"));
  EXPECT_THAT(explain_mpirun("bind() failed on h2: Address already in use"), StartsWith("a port"));
  EXPECT_THAT(explain_mpirun(
                  "[h1][[7,1],0][x.c:9] [h2][[7,1],2][x.c:9] bind() failed: no port available in the range "
                  "[5..6]\n[h2][[7,1],3][x.c:9] bind() failed: no port available in the range [5..6]\n"),
              StartsWith("host h2: a port that was asked for is taken"));
  EXPECT_THAT(explain_mpirun(
                  "ORTE has lost communication with a remote daemon.\n\n  Remote daemon: [[1,0],1] on node "
                  "h2\n"),
              HasSubstr("host h2 is gone"));
  EXPECT_THAT(explain_mpirun(
                  "ssh: connect to host h9 port 22: No route to host\n---\nORTE was unable to reliably start "
                  "one or more daemons.\n"),
              AllOf(HasSubstr("(ssh: connect to host h9"), HasSubstr("`ssh HOST mpirun --version`")));
  EXPECT_THAT(explain_mpirun("all is well"), IsEmpty());
}

}  // namespace
}  // namespace transmamba
