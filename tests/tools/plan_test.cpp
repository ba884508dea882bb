#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/machine.h"
#include "launch/process.h"
#include "tests/core/files.h"
#include "tools/commands.h"

namespace transmamba {
namespace {

using ::testing::AllOf;
using testing::error_of;
using testing::Folder;
using ::testing::HasSubstr;

std::string printed(std::vector<std::string> words) {
  words.insert(words.begin(), std::string(TRANSMAMBA_SOURCE_DIR) + "/configs/transmamba-400m.cfg");
  Process process;
  ::testing::internal::CaptureStdout();
  EXPECT_EQ(plan(process, words), 0);
  return ::testing::internal::GetCapturedStdout();
}

TEST(PlanCommand, PrintsAPlanForTheRanksAskedFor) {
  EXPECT_THAT(printed({"--ranks", "16", "--parallel.pp", "4"}),
              AllOf(HasSubstr("16 ranks = tp 1 x cp 1 x dp 4 x pp 4"), HasSubstr("built-in H200"),
                    HasSubstr("rank 3 |")));
}

TEST(PlanCommand, TakesAMachineFile) {
  const Folder folder;
  Machine machine = Machine::builtin_cpu();
  machine.name = "our cluster";
  machine.save(folder / "m.json");
  EXPECT_THAT(printed({"--ranks=4", "--machine", (folder / "m.json").string()}), HasSubstr("our cluster"));
}

TEST(PlanCommand, SaysWhatIsMissing) {
  Process process;
  const std::string config = std::string(TRANSMAMBA_SOURCE_DIR) + "/configs/transmamba-400m.cfg";
  EXPECT_THAT(error_of([&] { plan(process, {config}); }), HasSubstr("--ranks N"));
  EXPECT_THAT(error_of([&] { plan(process, {config, "--ranks"}); }), HasSubstr("needs a value"));
  EXPECT_THAT(error_of([&] { plan(process, {config, "--ranks", "many"}); }), HasSubstr("\"many\""));
  EXPECT_THAT(error_of([&] {
                plan(process, {config, "--ranks", "2", "--parallel.machine", "/nowhere.json"});
              }),
              HasSubstr("/nowhere.json"));
  EXPECT_THAT(error_of([&] { bench(process, {"--output", "/nowhere/m.json"}); }), HasSubstr("--quick"));
  EXPECT_THAT(error_of([&] { bench(process, {"--quick", "--seconds", "0"}); }), HasSubstr("\"0\""));
}

TEST(BenchCommand, OfOneRankWritesAFileThatSaysItsLinksAreBuiltIn) {
  const Folder folder;
  const std::string file = (folder / "m.json").string();
  Process process;
  ::testing::internal::CaptureStdout();
  EXPECT_EQ(bench(process, {"--quick", "--seconds", "0.05", "--output", file, "--model.hidden_size", "32",
                            "--model.num_heads", "2", "--train.seq_len", "64"}),
            0);
  EXPECT_THAT(::testing::internal::GetCapturedStdout(), HasSubstr("AdamW"));
  EXPECT_THAT(printed({"--ranks=4", "--machine", file}),
              HasSubstr("links between ranks: built-in numbers, as one rank measured"));
}

}  // namespace
}  // namespace transmamba
