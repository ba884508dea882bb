#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "launch/process.h"
#include "tests/core/files.h"
#include "tools/commands.h"
#include "tools/kernel_cases.h"

namespace transmamba {
namespace {

using testing::error_of;
using testing::Folder;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::slurp;

const std::vector<std::string> kSmall = {"--device",
                                         "cpu",
                                         "--dtype",
                                         "float32",
                                         "--seconds",
                                         "0.001",
                                         "--model.vocab_size=40",
                                         "--model.hidden_size=24",
                                         "--model.num_heads=2",
                                         "--model.v_head_dim=10",
                                         "--model.ffn_hidden_size=20",
                                         "--train.seq_len=37"};

std::string printed(std::vector<std::string> words) {
  words.insert(words.begin(), "kernels");
  words.insert(words.end(), kSmall.begin(), kSmall.end());
  Process process;
  ::testing::internal::CaptureStdout();
  EXPECT_EQ(bench(process, words), 0);
  return ::testing::internal::GetCapturedStdout();
}

TEST(BenchKernels, TimesEveryKernelOfAStep) {
  const Folder folder;
  const std::string text = printed({"--json", (folder / "kernels.json").string()});
  const auto json = nlohmann::json::parse(slurp(folder / "kernels.json"));
  EXPECT_EQ(json.at("dtype"), "float32");
  EXPECT_GT(json.at("copy_bytes_per_second"), 0);
  EXPECT_GT(json.at("product_flops_per_second"), 0);
  ASSERT_EQ(json.at("kernels").size(),
            kernel_cases(parse_config_text("", "", {"--model.vocab_size=40"})).size());
  for (const auto& kernel : json.at("kernels")) {
    EXPECT_THAT(text, HasSubstr(kernel.at("name").get<std::string>()));
    EXPECT_GT(kernel.at("seconds"), 0) << kernel;
    EXPECT_GT(kernel.at("floor_seconds"), 0) << kernel;
  }
}

TEST(BenchKernels, CountsBytesOnceAndProductsTwice) {
  const Folder folder;
  printed({"--filter", "^(copy|gemm_out_proj|ssd_scan)$", "--json", (folder / "k.json").string()});
  const auto kernels = nlohmann::json::parse(slurp(folder / "k.json")).at("kernels");
  ASSERT_EQ(kernels.size(), 3u);
  const double tokens = 2 * 37, d = 24, hn = 24, hp = 20, float32 = 4;
  EXPECT_EQ(kernels[0].at("flops"), 2 * tokens * d * hp);
  EXPECT_EQ(kernels[0].at("bytes"), float32 * (tokens * hp + d * hp + 2 * tokens * d));  // and the residual
  EXPECT_EQ(kernels[1].at("flops"), 4 * tokens * 2 * 12 * 10);
  EXPECT_EQ(kernels[1].at("bytes"), float32 * (tokens * (2 * hn + 2 * hp + 2) + 2 + 2 + 2 * 2 * 12 * 10));
  EXPECT_EQ(kernels[2].at("bytes"), float32 * 2 * tokens * d);
}

TEST(BenchKernels, FiltersByName) {
  const std::string text = printed({"--filter", "ssd_.*_backward"});
  EXPECT_THAT(text, HasSubstr("ssd_summary_backward"));
  EXPECT_THAT(text, HasSubstr("ssd_scan_backward"));
  EXPECT_THAT(text, Not(HasSubstr("attention")));
}

TEST(BenchKernels, SaysWhatItCannotRead) {
  Process process;
  const auto error = [&](std::vector<std::string> words) {
    words.insert(words.begin(), "kernels");
    return error_of([&] { bench(process, words); });
  };
  EXPECT_THAT(error({"--filter", "("}), HasSubstr("expected a regular expression, got \"(\""));
  EXPECT_THAT(error({"--filter", "sdd"}), HasSubstr("\"sdd\" is found in none of gemm_in_proj"));
  EXPECT_THAT(error({"--json"}), HasSubstr("--json needs a value"));
  EXPECT_THAT(error({"--seconds", "0"}), HasSubstr("--seconds: expected a number above 0"));
  EXPECT_THAT(error({"--model.num_head", "4"}), HasSubstr("model.num_head"));
  EXPECT_THAT(error({"--config", std::string(TRANSMAMBA_SOURCE_DIR) + "/configs/tiny-cpu.cfg"}),
              HasSubstr("model.vocab_size: expected a number above 0"));
}

}  // namespace
}  // namespace transmamba
