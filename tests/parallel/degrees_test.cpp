#include "parallel/degrees.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/core/files.h"

namespace transmamba {
namespace {

using ::testing::AllOf;
using testing::error_of;
using ::testing::HasSubstr;

Config with(std::vector<std::string> overrides) {
  for (const char* word : {"--train.global_batch", "64", "--train.micro_batch", "2"})
    overrides.push_back(word);
  return parse_config("", overrides);
}

std::string error_with(std::vector<std::string> overrides, int ranks) {
  const Config config = with(std::move(overrides));
  return error_of([&] { resolve_parallel(config, ranks); });
}

TEST(Degrees, FillInDataParallelRanks) {
  const Config config = with({"--parallel.tp", "2", "--parallel.cp", "2", "--parallel.pp", "2"});
  const ParallelConfig resolved = resolve_parallel(config, 32);
  EXPECT_EQ(resolved.dp, 4);
  EXPECT_EQ(micro_batches(config, resolved), 8);
  EXPECT_EQ(resolve_parallel(with({}), 1).dp, 1);
}

TEST(Degrees, MustMultiplyToTheRanks) {
  EXPECT_THAT(error_with({"--parallel.tp", "2", "--parallel.cp", "3"}, 8),
              AllOf(HasSubstr("[parallel]"), HasSubstr("2 x 3 x 1 = 6"), HasSubstr("8 ranks"),
                    HasSubstr("1, 2, 4, 8"), HasSubstr("6 and 12")));
  EXPECT_THAT(error_with({"--parallel.tp", "2", "--parallel.dp", "2"}, 8),
              AllOf(HasSubstr("2 x 1 x 1 x 2 = 4"), HasSubstr("8 ranks"), HasSubstr("parallel.dp = 4"),
                    HasSubstr("or 4 ranks")));
}

TEST(Degrees, TensorParallelRanksShareHeadsAndWidths) {
  EXPECT_THAT(error_with({"--parallel.tp", "8"}, 8),
              AllOf(HasSubstr("tp = 8"), HasSubstr("num_heads = 4"), HasSubstr("1, 2, 4")));
  EXPECT_THAT(error_with({"--parallel.tp", "4", "--model.ffn_hidden_size", "70"}, 4),
              AllOf(HasSubstr("ffn_hidden_size = 70"), HasSubstr("68 and 72")));
  EXPECT_NO_THROW(resolve_parallel(
      with({"--parallel.tp", "4", "--model.ffn_hidden_size", "70", "--model.layer_pattern", "T"}), 4));
  EXPECT_NO_THROW(resolve_parallel(with({"--parallel.tp", "4", "--train.seq_len", "501"}), 4));  // any tokens
}

TEST(Degrees, ContextParallelRanksShareTheSequence) {
  EXPECT_THAT(error_with({"--parallel.cp", "3"}, 3), AllOf(HasSubstr("[context]"), HasSubstr("510 and 513")));
  EXPECT_THAT(
      error_with({"--parallel.cp", "2", "--parallel.cp_layout", "zigzag", "--train.seq_len", "510"}, 2),
      AllOf(HasSubstr("zigzag"), HasSubstr("508 and 512")));
}

TEST(Degrees, StagesNeedLayersAndAPipeline) {
  EXPECT_THAT(error_with({"--parallel.pp", "16"}, 16),
              AllOf(HasSubstr("16 stages"), HasSubstr("num_layers = 8"), HasSubstr("at most 8")));
  EXPECT_THAT(error_with({"--parallel.virtual_stages", "2"}, 4), HasSubstr("virtual_stages = 2"));
}

TEST(Degrees, TheBatchMustDivide) {
  EXPECT_THAT(error_with({}, 5),
              AllOf(HasSubstr("global_batch = 64"), HasSubstr("2 x 5 = 10"), HasSubstr("60 and 70")));
  EXPECT_THAT(error_with({"--parallel.pp", "3", "--parallel.virtual_stages", "2"}, 3),
              AllOf(HasSubstr("64 / (2 x 1) = 32"), HasSubstr("60 and 66")));
  EXPECT_NO_THROW(resolve_parallel(with({"--parallel.pp", "3"}), 3));
}

}  // namespace
}  // namespace transmamba
