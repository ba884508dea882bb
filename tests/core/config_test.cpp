#include "core/config.h"

#include <fmt/core.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "core/config_keys.h"
#include "kernels/check.h"

namespace transmamba {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using Words = std::vector<std::string>;
namespace fs = std::filesystem;

Config from_words(const Words& words) { return parse_config("", words); }
Config from_text(const std::string& ini, const Words& words = {}) {
  return parse_config_text(ini, "run.cfg", words);
}

/// What `parse` says when it throws Error; anything else fails the test.
template <class Parse>
std::string error_of(Parse&& parse) {
  try {
    parse();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "expected an Error";
  return "";
}
std::string word_error(const Words& words) {
  return error_of([&] { from_words(words); });
}
std::string training_error(const Words& words) {
  return error_of([&] { from_words(words).validate_training(); });
}
std::string text_error(const std::string& ini, const Words& words = {}) {
  return error_of([&] { from_text(ini, words); });
}

class ConfigFile : public ::testing::Test {
 protected:
  ConfigFile() {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() / (std::string("transmamba_config_") + test->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~ConfigFile() override { fs::remove_all(folder_); }
  fs::path write(const std::string& text) const {
    std::ofstream(folder_ / "run.cfg", std::ios::binary) << text;
    return folder_ / "run.cfg";
  }
  fs::path folder_;
};

TEST(ConfigDefaults, AreValidOnceResolved) {
  Config config;
  EXPECT_THAT(error_of([&] { config.validate(); }), HasSubstr("resolve()"));
  config.resolve();
  config.validate();
  EXPECT_EQ(config, from_words({}));
}

TEST(ConfigDefaults, HeadWidthsShareTheHiddenSizeAndTheMlpIsEightThirdsOfIt) {
  const Config config = from_words({"--model.hidden_size", "1536", "--model.num_heads", "16"});
  EXPECT_EQ(config.model.qk_head_dim, 96);
  EXPECT_EQ(config.model.v_head_dim, 96);
  EXPECT_EQ(config.model.ffn_hidden_size, 4096);
  EXPECT_EQ(from_words({"--model.hidden_size=100", "--model.num_heads=5"}).model.ffn_hidden_size, 320);
}

TEST(ConfigDefaults, GivenWidthsAreFreeOfTheHiddenSize) {
  const Config config = from_words({"--model.hidden_size=101", "--model.num_heads=7", "--model.qk_head_dim=8",
                                    "--model.v_head_dim=5", "--model.ffn_hidden_size=33"});
  EXPECT_EQ(config.model.qk_head_dim, 8);
  EXPECT_EQ(config.model.v_head_dim, 5);
  EXPECT_EQ(config.model.ffn_hidden_size, 33);
}

TEST(ConfigIni, RoundTripsExactly) {
  Config config = from_text(R"(
[model]
vocab_size = 32000
transpoints = 0, 128,T
memory_converter = off
norm_eps = 1.1234567890123457e-6
[data]
path = a folder/tokens.h5
[train]
seed = 9223372036854775807
[optimizer]
lr = 0.1
min_lr = 0.010000000000000002
[checkpoint]
path = /runs/x=1
resume = auto
)");
  EXPECT_FALSE(config.model.memory_converter);
  EXPECT_EQ(config.data.path, "a folder/tokens.h5");
  EXPECT_EQ(config.checkpoint.path, "/runs/x=1");
  EXPECT_EQ(config.optimizer.min_lr, 0.010000000000000002);
  const Config again = from_text(config.to_ini());
  EXPECT_EQ(again, config);
  EXPECT_EQ(again.to_ini(), config.to_ini());
}

TEST(ConfigIni, PrintsTheResolvedNumbers) {
  const std::string ini = from_words({"--optimizer.lr=3e-3"}).to_ini();
  EXPECT_THAT(ini, AllOf(HasSubstr("[model]\n"), HasSubstr("\nqk_head_dim = 64\n"),
                         HasSubstr("\nffn_hidden_size = 704\n"), HasSubstr("\nlr = 0.003\n"),
                         HasSubstr("\nvalidation_path =\n")));
}

TEST(ConfigIni, TakesBothKindsOfCommentsBlanksAndWindowsLineEnds) {
  const Config config = from_text(
      "; one\r\n# two\r\n\r\n  [train]\r\n  steps=  50 # three\r\nseed = 7;four\r\n[train]\ndtype=float64");
  EXPECT_EQ(config.train.steps, 50);
  EXPECT_EQ(config.train.seed, 7);
  EXPECT_EQ(config.train.dtype, "float64");
}

TEST(ConfigIni, TakesEveryWayToSayYesAndNo) {
  for (const char* yes : {"true", "on", "yes", "1"})
    EXPECT_TRUE(from_words({"--model.tie_embeddings", yes}).model.tie_embeddings);
  for (const char* no : {"false", "off", "no", "0"})
    EXPECT_FALSE(from_words({"--model.memory_converter", no}).model.memory_converter);
  EXPECT_THAT(word_error({"--model.tie_embeddings", "maybe"}),
              AllOf(HasSubstr("model.tie_embeddings"), HasSubstr("true or false"), HasSubstr("\"maybe\"")));
}

TEST(ConfigIni, RejectsAKeyGivenTwice) {
  EXPECT_THAT(text_error("[train]\nsteps = 20\n[model]\n[train]\nsteps = 30"),
              AllOf(HasSubstr("train.steps"), HasSubstr("twice"), HasSubstr("run.cfg")));
}

TEST(ConfigIni, RejectsALineThatIsNoIni) {
  for (const char* ini : {"[train\nsteps = 20", "[train]\nsteps 20", "hello"})
    EXPECT_THAT(text_error(ini), AllOf(HasSubstr("run.cfg"), HasSubstr("expected [section], key = value")));
}

TEST(ConfigCommandLine, OverridesTheFileInBothForms) {
  const Config config =
      from_text("[train]\nsteps = 20\nseed = 1\n", {"--train.steps", "30", "--train.seed=2"});
  EXPECT_EQ(config.train.steps, 30);
  EXPECT_EQ(config.train.seed, 2);
}

TEST(ConfigCommandLine, RejectsTheSameKeyTwice) {
  EXPECT_THAT(word_error({"--train.steps", "20", "--train.steps=30"}),
              AllOf(HasSubstr("train.steps"), HasSubstr("twice"), HasSubstr("command line")));
}

TEST(ConfigCommandLine, TakesANegativeNumberAsAValue) {
  for (const Words& words : {Words{"--optimizer.lr", "-1"}, Words{"--optimizer.lr=-1"}})
    EXPECT_THAT(word_error(words), AllOf(HasSubstr("optimizer.lr (command line)"), HasSubstr("at least 0"),
                                         HasSubstr("\"-1\"")));
}

TEST(ConfigCommandLine, RejectsWordsThatBelongToNoKey) {
  for (const Words& words : {Words{"train"}, Words{"--train.steps", "30", "train"}, Words{"-train", "3"}})
    EXPECT_THAT(word_error(words),
                AllOf(HasSubstr("command line"), HasSubstr("--section.key value"), HasSubstr("train\"")));
}

TEST(ConfigCommandLine, RejectsAKeyWithoutAValue) {
  EXPECT_THAT(word_error({"--train.steps"}), HasSubstr("train.steps"));
  EXPECT_THAT(word_error({"--train.steps="}), HasSubstr("train.steps"));
  EXPECT_THAT(word_error({"--checkpoint.path", "--train.steps", "30"}),
              AllOf(HasSubstr("checkpoint.path"), HasSubstr("needs a value")));
}

TEST(ConfigCommandLine, TakesADashedValueBehindAnEqualsSignAndAnEmptyOne) {
  EXPECT_EQ(from_words({"--model.layer_pattern=--T"}).model.layer_pattern, "--T");
  EXPECT_EQ(from_text("[checkpoint]\npath = x", {"--checkpoint.path", ""}).checkpoint.path, "");
}

TEST(ConfigCommandLine, DoesNotGuessFromAPrefix) {
  EXPECT_THAT(word_error({"--train.step", "30"}),
              AllOf(HasSubstr("unknown key train.step (command line)"), HasSubstr("nearest is train.steps")));
}

TEST(ConfigUnknownKey, NamesTheNearestKeyAndTheSection) {
  EXPECT_THAT(
      text_error("[model]\nhiden_size = 3"),
      AllOf(HasSubstr("unknown key model.hiden_size (run.cfg)"), HasSubstr("nearest is model.hidden_size"),
            HasSubstr("section model has vocab_size, hidden")));
}

TEST(ConfigUnknownKey, FindsTheRightWordInTheWrongSectionOrInNone) {
  EXPECT_THAT(text_error("[train]\nlr = 3"), HasSubstr("nearest is optimizer.lr"));
  EXPECT_THAT(text_error("micro_batch = 3"), HasSubstr("nearest is train.micro_batch"));
  EXPECT_THAT(word_error({"--clip-grad", "3"}),
              AllOf(HasSubstr("nearest is optimizer.clip_grad"),
                    HasSubstr("sections are model, data, train, parallel, optimizer, checkpoint, log")));
}

TEST(ConfigValues, RejectWhatIsNoInteger) {
  for (const char* value : {"1.5", "1e3x", "1e3", "0x10", "ten", "", "99999999999999999999", "+-3"})
    EXPECT_THAT(word_error({"--train.steps", value}),
                AllOf(HasSubstr("train.steps (command line)"), HasSubstr("an integer of at least 1"),
                      HasSubstr(fmt::format("\"{}\"", value))));
}

TEST(ConfigValues, RejectWhatIsNoFiniteNumber) {
  for (const char* value : {"nan", "inf", "-inf", "1e999", "fast", "1e-3x", "1,5"})
    EXPECT_THAT(text_error("[optimizer]\nlr = " + std::string(value)),
                AllOf(HasSubstr("optimizer.lr (run.cfg)"), HasSubstr("a finite number of at least 0"),
                      HasSubstr(fmt::format("\"{}\"", value))));
}

TEST(ConfigValues, RejectWhatIsOutsideTheRange) {
  EXPECT_THAT(word_error({"--train.steps=0"}), HasSubstr("at least 1"));
  EXPECT_THAT(word_error({"--model.vocab_size=-1"}), HasSubstr("from 0 to 2147483647"));
  EXPECT_THAT(word_error({"--optimizer.beta1=1"}), HasSubstr("at least 0 and below 1"));
  EXPECT_THAT(word_error({"--optimizer.clip_grad=0"}), HasSubstr("above 0"));
}

TEST(ConfigValues, RejectWhatIsNoChoice) {
  EXPECT_THAT(word_error({"--train.dtype", "float16"}),
              AllOf(HasSubstr("train.dtype"), HasSubstr("one of float32, float64, bfloat16"),
                    HasSubstr("\"float16\"")));
  EXPECT_THAT(word_error({"--model.gate", "SSM"}), HasSubstr("one of ssm, all, none"));
  EXPECT_THAT(word_error({"--train.recompute", "some"}), HasSubstr("one of none, selective, full"));
}

TEST(ConfigValues, Bfloat16NeedsAGpu) {
  EXPECT_THAT(word_error({"--train.dtype", "bfloat16"}),
              AllOf(HasSubstr("train.dtype = bfloat16"), HasSubstr("train.device = cuda, got cpu")));
  EXPECT_EQ(parse_config("", {"--train.dtype=bfloat16", "--train.device=cuda"}).train.dtype, "bfloat16");
}

TEST(ConfigValues, HeadsWithoutAKernelDoNotTrain) {
  const auto train = [](const char* heads, const char* dtype) {
    from_words({"--train.device=cuda", "--train.dtype", dtype, "--model.hidden_size=384", "--model.num_heads",
                heads})
        .validate_training();
  };
  EXPECT_THAT(error_of([&] { train("8", "bfloat16"); }),
              AllOf(HasSubstr("heads of 64, 96 and 128"), HasSubstr("model.qk_head_dim = 48"),
                    HasSubstr("model.v_head_dim = 48"), HasSubstr("train.dtype = float32")));
  EXPECT_THAT(training_error({"--train.device=cuda", "--train.dtype=bfloat16", "--model.hidden_size=128",
                              "--model.num_heads=2", "--model.v_head_dim=256"}),
              HasSubstr("model.v_head_dim = 256"));
  EXPECT_NO_THROW(train("8", "float32"));
  for (const char* heads : {"3", "4", "6"}) EXPECT_NO_THROW(train(heads, "bfloat16"));
}

TEST(ConfigValues, RejectTextThatAnIniFileCannotHold) {
  for (const char* value : {"a#b", "a;b", "a\nb", " a", "a "})
    EXPECT_THAT(word_error({"--data.path", value}), AllOf(HasSubstr("data.path"), HasSubstr("no #")));
}

TEST(ConfigValues, AreCheckedAgainWhenAProgramMadeThem) {
  Config config = from_words({});
  config.train.device = "tpu";
  EXPECT_THAT(error_of([&] { config.validate(); }),
              AllOf(HasSubstr("train.device"), HasSubstr("one of cpu, cuda"), HasSubstr("\"tpu\"")));
}

TEST(ConfigContradiction, OddQueryWidth) {
  EXPECT_THAT(word_error({"--model.qk_head_dim=9"}),
              AllOf(HasSubstr("model.qk_head_dim"), HasSubstr("even"), HasSubstr("9")));
}

TEST(ConfigContradiction, HiddenSizeThatTheHeadsCannotShare) {
  EXPECT_THAT(word_error({"--model.num_heads=7"}),
              AllOf(HasSubstr("model.hidden_size = 256"), HasSubstr("model.num_heads = 7"),
                    HasSubstr("model.qk_head_dim = 0"), HasSubstr("4 and 8")));
  EXPECT_THAT(word_error({"--model.num_heads=256"}),  // divides, but RoPE cannot pair one dimension
              AllOf(HasSubstr("256 / 256 = 1"), HasSubstr("even"), HasSubstr("128;")));
  EXPECT_THAT(word_error({"--model.hidden_size=100", "--model.num_heads=7", "--model.qk_head_dim=4"}),
              AllOf(HasSubstr("model.v_head_dim = 0"), HasSubstr("5 and 10")));
  EXPECT_THAT(word_error({"--model.hidden_size=101", "--model.num_heads=7"}),
              HasSubstr("hidden_size is odd"));
}

TEST(ConfigContradiction, LayerPatternThatIsNone) {
  for (const char* pattern : {"TM", "t-", "T -", ""})
    EXPECT_THAT(text_error("[model]\nlayer_pattern = " + std::string(pattern)),
                AllOf(HasSubstr("model.layer_pattern"), HasSubstr("letters T and -")));
}

TEST(ConfigContradiction, LayerPatternWithoutAMixer) {
  EXPECT_THAT(training_error({"--model.layer_pattern=-"}),
              AllOf(HasSubstr("\"-\""), HasSubstr("at least one T")));
  EXPECT_THAT(training_error({"--model.layer_pattern=-T", "--model.num_layers=1"}),
              AllOf(HasSubstr("\"-T\""), HasSubstr("model.num_layers = 1")));
}

TEST(ConfigContradiction, TransPointsThatNobodyCanRead) {
  EXPECT_THAT(word_error({"--model.transpoints=V10"}), AllOf(HasSubstr("\"V10\""), HasSubstr("V1, V2")));
}

TEST(ConfigContradiction, MicroBatchThatDoesNotDivideTheGlobalBatch) {
  EXPECT_THAT(word_error({"--train.micro_batch=3"}),
              AllOf(HasSubstr("train.global_batch = 4"), HasSubstr("train.micro_batch = 3")));
}

TEST(ConfigContradiction, WarmUpLongerThanTheRun) {
  EXPECT_THAT(training_error({"--train.steps=5"}),
              AllOf(HasSubstr("optimizer.warmup_steps = 10"), HasSubstr("train.steps = 5")));
}

TEST(ConfigContradiction, SmallestRateAboveTheLargest) {
  EXPECT_THAT(training_error({"--optimizer.lr=1e-5"}),
              AllOf(HasSubstr("optimizer.min_lr = 2.5e-05"), HasSubstr("optimizer.lr = 1e-05")));
}

TEST(ConfigContradiction, CheckpointsWithoutAFolder) {
  EXPECT_THAT(word_error({"--checkpoint.resume=auto"}),
              AllOf(HasSubstr("checkpoint.resume = auto"), HasSubstr("checkpoint.path")));
  EXPECT_THAT(word_error({"--checkpoint.every=5"}),
              AllOf(HasSubstr("checkpoint.every = 5"), HasSubstr("checkpoint.path")));
  EXPECT_EQ(from_words({"--checkpoint.resume=runs/a/step_10"}).checkpoint.resume, "runs/a/step_10");
}

TEST_F(ConfigFile, IsReadAndNamedInErrors) {
  EXPECT_EQ(parse_config(write("[train]\nsteps = 12\n"), {}).train.steps, 12);
  const fs::path bad = write("[train]\nsteps = many\n");
  EXPECT_THAT(error_of([&] { parse_config(bad, {}); }),
              HasSubstr(fmt::format("train.steps ({})", bad.string())));
}

TEST_F(ConfigFile, MayBeEmpty) { EXPECT_EQ(parse_config(write(""), {}), from_words({})); }

TEST_F(ConfigFile, ThatIsMissingOrAFolderOrNoTextIsAnError) {
  EXPECT_THAT(error_of([&] { parse_config(folder_ / "none.cfg", {}); }),
              AllOf(HasSubstr("no configuration file"), HasSubstr("none.cfg")));
  EXPECT_THAT(error_of([&] { parse_config(folder_, {}); }),
              AllOf(HasSubstr("got the folder"), HasSubstr(folder_.string())));
  EXPECT_THAT(error_of([&] { parse_config(write(std::string("\x89HDF\0\0", 6)), {}); }),
              HasSubstr("not a text file"));
}

TEST(ShippedConfigs, AllParseAndValidate) {
  const fs::path folder = fs::path(__FILE__).parent_path().parent_path().parent_path() / "configs";
  int count = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() != ".cfg") continue;
    const Config config = parse_config(entry.path(), {});
    EXPECT_EQ(from_text(config.to_ini()), config) << entry.path();
    ++count;
  }
  EXPECT_GE(count, 3);
  const Config paper = parse_config(folder / "transmamba-400m.cfg", {});
  EXPECT_EQ(paper.model.qk_head_dim, 96);
  EXPECT_EQ(paper.train.global_batch, 1024);
  EXPECT_EQ(parse_config(folder / "transmamba-1.5b.cfg", {}).model.num_mixers(), 32);
  EXPECT_EQ(parse_config(folder / "tiny-cpu.cfg", {}).model.qk_head_dim, 32);
}

TEST(ConfigHelp, TellsEveryKeyWithItsDefaultAndWhatIsAllowed) {
  const std::string help = describe_config();
  for (const ConfigKey& key : config_keys())
    EXPECT_THAT(
        help, AllOf(HasSubstr("--" + key.name + " (default "), HasSubstr(key.help), HasSubstr(key.allowed)));
  EXPECT_THAT(help, HasSubstr("--train.seq_len (default 512)"));
}

}  // namespace
}  // namespace transmamba
