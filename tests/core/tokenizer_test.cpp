#include "core/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/core/files.h"
#include "tests/core/piece_model.h"

namespace transmamba {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::error_of;
using testing::Folder;
using ::testing::HasSubstr;

TEST(ByteTokenizer, GivesBackAnyBytes) {
  const auto tokenizer = make_tokenizer("bytes");
  EXPECT_EQ(tokenizer->name(), "bytes");
  EXPECT_EQ(tokenizer->vocab_size(), 257);
  EXPECT_EQ(tokenizer->end_of_document(), 256);
  std::string all;
  for (int i = 255; i >= 0; --i) all += static_cast<char>(i);
  const auto ids = tokenizer->encode(all);
  EXPECT_EQ(ids.front(), 255);
  EXPECT_EQ(tokenizer->decode(ids), all);
  EXPECT_EQ(tokenizer->decode(std::vector<std::int32_t>{'a', 256, 'b', 999, -1}),
            "ab\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST(Tokenizer, RefusesUnknownNamesAndBadModels) {
  EXPECT_THAT(error_of([] { make_tokenizer("byte"); }),
              AllOf(HasSubstr("bytes or sentencepiece:MODEL"), HasSubstr("'byte'")));
  EXPECT_THAT(error_of([] { make_tokenizer("sentencepiece:/no/such.model"); }),
              HasSubstr("no such model file"));
  const Folder folder;
  testing::spill(folder / "bad.model", "not a model");
  EXPECT_THAT(error_of([&] { make_tokenizer("sentencepiece:" + (folder / "bad.model").string()); }),
              HasSubstr("not a SentencePiece model"));
  testing::spill(folder / "empty.model", "");
  EXPECT_THAT(error_of([&] { make_tokenizer("sentencepiece:" + (folder / "empty.model").string()); }),
              HasSubstr("not a SentencePiece model"));
}

TEST(Utf8Stream, HoldsBackIncompleteCharacters) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("na\xC3"), "na");
  EXPECT_EQ(stream.push("\xAFve \xF0\x9F"), "\xC3\xAFve ");
  EXPECT_EQ(stream.push("\x98"), "");
  EXPECT_EQ(stream.push("\x80!"), "\xF0\x9F\x98\x80!");
  EXPECT_EQ(stream.push("\xFF\x80z"), "\xEF\xBF\xBD\xEF\xBF\xBDz");
  EXPECT_EQ(stream.push("\xC3("), "\xEF\xBF\xBD(");
  EXPECT_EQ(stream.push("\xE2\x96"), "");
  EXPECT_EQ(stream.finish(), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.finish(), "");
}

TEST(Utf8Stream, RefusesOverlongFormsAndSurrogates) {
  EXPECT_EQ(utf8_character("\xC0\x80"), 0);
  EXPECT_EQ(utf8_character("\xE0\x80\x80"), 0);
  EXPECT_EQ(utf8_character("\xED\xA0\x80"), 0);
  EXPECT_EQ(utf8_character("\xF4\x90\x80\x80"), 0);
  EXPECT_EQ(utf8_character("\xF4\x8F\xBF\xBF"), 4);
  EXPECT_EQ(utf8_character("\xE2\x96\x81"), 3);
  EXPECT_EQ(utf8_character("\xE2\x96"), -1);
}

TEST(SentencePieceTokenizer, IsLosslessForALosslessModelAndAnyBytes) {
  const Folder folder;
  const auto tokenizer = make_tokenizer("sentencepiece:" + testing::piece_model(folder).string());
  EXPECT_EQ(tokenizer->vocab_size(), 400);
  EXPECT_EQ(tokenizer->end_of_document(), 2);
  std::string every;
  for (int i = 0; i < 256; ++i) every += static_cast<char>(i);
  for (const std::string& text :
       {std::string("the quick fox"), std::string("  the   fox \n\n\t jumps\r\n"),
        std::string("na\xC3\xAFve \xF0\x9F\x98\x80"), std::string("a \xE2\x96\x81 b\xE2\x96\x81"),
        std::string("bad \xFF\xC3 utf-8 \xE2"), std::string("nul \0 byte", 10),
        std::string("<s> </s> <unk> <0x41>"), std::string("\n"), std::string(" "), std::string(), every}) {
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
    std::string one_by_one;
    for (const std::int32_t token : tokenizer->encode(text)) one_by_one += tokenizer->decode({&token, 1});
    EXPECT_EQ(one_by_one, text);
  }
  EXPECT_LT(tokenizer->encode("the quick brown fox").size(), 12U);
  EXPECT_EQ(tokenizer->decode(std::vector<std::int32_t>{2, 1, 400}), "\xEF\xBF\xBD");
}

TEST(SentencePieceTokenizer, EncodesLinesIndependently) {
  const Folder folder;
  for (const char* options : {testing::kLossless, "--byte_fallback=true", ""}) {
    const auto tokenizer = make_tokenizer("sentencepiece:" + testing::piece_model(folder, options).string());
    const std::string a = "the quick fox\n", b = " jumps over\nthe dog";
    auto apart = tokenizer->encode(a);
    for (const std::int32_t token : tokenizer->encode(b)) apart.push_back(token);
    EXPECT_EQ(tokenizer->encode(a + b), apart) << options;
  }
}

TEST(SentencePieceTokenizer, WithoutAnEosPieceGetsAnIdOfItsOwn) {
  const Folder folder;
  const auto tokenizer = make_tokenizer(
      "sentencepiece:" + testing::piece_model(folder, "--byte_fallback=true --eos_id=-1").string());
  EXPECT_EQ(tokenizer->end_of_document(), 400);
  EXPECT_EQ(tokenizer->vocab_size(), 401);
  EXPECT_EQ(tokenizer->decode(std::vector<std::int32_t>{400}), "");
}

TEST(SentencePieceTokenizer, NeedsNoFileOnceItsModelIsStored) {
  const Folder folder;
  const auto path = testing::piece_model(folder);
  const auto tokenizer = make_tokenizer("sentencepiece:" + path.string());
  std::filesystem::remove(path);
  const auto again = make_tokenizer(tokenizer->name(), tokenizer->model());
  EXPECT_EQ(again->name(), tokenizer->name());
  EXPECT_EQ(again->encode("the quick fox"), tokenizer->encode("the quick fox"));
}

}  // namespace
}  // namespace transmamba
