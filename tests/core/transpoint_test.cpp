#include "core/transpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/check.h"

namespace transmamba {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Points = std::vector<std::int64_t>;

Points resolve(const std::string& transpoints, std::int64_t seq_len, const std::string& unit = "token",
               std::int64_t num_layers = 16) {
  ModelConfig model;
  model.num_layers = num_layers;
  model.transpoints = transpoints;
  model.transpoint_unit = unit;
  return resolve_transpoints(model, seq_len);
}

std::string error_of(const std::string& transpoints, const std::string& unit = "token") {
  try {
    resolve(transpoints, 64, unit);
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "expected an Error for " << transpoints;
  return "";
}

TEST(TransPoint, NamedSchedulesAreThePapersAtItsLength) {
  EXPECT_EQ(resolve("V1", 8192, "token", 2), Points({2048}));
  EXPECT_EQ(resolve("V2", 8192, "token", 2), Points({4096}));
  EXPECT_EQ(resolve("V3", 8192, "token", 2), Points({6144}));
  EXPECT_EQ(resolve("V4", 8192, "token", 6), Points({3072, 4096, 5120}));
  EXPECT_EQ(resolve("V5", 8192, "token", 6), Points({2048, 3072, 4096}));
  EXPECT_EQ(resolve("V6", 8192, "token", 6), Points({512, 1024, 2048}));
  EXPECT_EQ(resolve("V7", 8192, "token", 6), Points({2048, 4096, 6144}));
  EXPECT_EQ(resolve("V8", 8192, "token", 10), Points({0, 1024, 2048, 6144, 8192}));
  EXPECT_EQ(resolve("V9", 8192), Points({0, 128, 256, 512, 1024, 2048, 4096, 8192}));
  EXPECT_EQ(resolve("transformer", 8192, "token", 4), Points({8192, 8192}));
  EXPECT_EQ(resolve("mamba", 8192, "token", 4), Points({0, 0}));
  EXPECT_EQ(resolve("hybrid", 8192, "token", 8), Points({0, 8192, 0, 8192}));
}

TEST(TransPoint, CyclesOverTheMixersOnly) {
  EXPECT_THAT(resolve("1,2,3", 64, "token", 9), ElementsAre(1, 2, 3, 1, 2));
}

TEST(TransPoint, IsAbsoluteAndClampedToTheSequence) {
  EXPECT_EQ(resolve("V9", 300), Points({0, 128, 256, 300, 300, 300, 300, 300}));
  EXPECT_EQ(resolve("V3", 32768, "token", 2), Points({6144}));
}

TEST(TransPoint, TakesTAndBlanksInAList) {
  EXPECT_THAT(resolve(" 0 , T", 64, "token", 4), ElementsAre(0, 64));
}

TEST(TransPoint, FractionsScaleWithTheSequenceAndRound) {
  EXPECT_THAT(resolve("0,0.25,0.5,1,T", 10, "fraction", 10), ElementsAre(0, 3, 5, 10, 10));
}

TEST(TransPoint, NamedSchedulesScaleFromThePapersLengthAsFractions) {
  EXPECT_EQ(resolve("V9", 256, "fraction"), Points({0, 4, 8, 16, 32, 64, 128, 256}));
  EXPECT_EQ(resolve("V3", 32768, "fraction", 2), Points({24576}));
  EXPECT_EQ(resolve("hybrid", 100, "fraction", 4), Points({0, 100}));
}

TEST(TransPoint, RejectsWhatIsNoScheduleAndSaysWhatIs) {
  for (const char* text : {"V10", "v9", "", "1,,2", "1,", "-1", "1.5", "3x", "99999999999999999999", "t"})
    EXPECT_THAT(error_of(text),
                ::testing::AllOf(HasSubstr("model.transpoints = \"" + std::string(text) + "\""),
                                 HasSubstr("V9, transformer, mamba, hybrid"), HasSubstr("at least 0")));
}

TEST(TransPoint, RejectsFractionsOutsideZeroToOne) {
  for (const char* text : {"1.01", "-0.1", "nan", "128", "half"})
    EXPECT_THAT(error_of(text, "fraction"), HasSubstr("fractions of seq_len from 0 to 1"));
}

TEST(TransPoint, RejectsAnUnknownUnit) {
  EXPECT_THAT(error_of("0", "percent"), ::testing::AllOf(HasSubstr("token, fraction"), HasSubstr("percent")));
}

}  // namespace
}  // namespace transmamba
