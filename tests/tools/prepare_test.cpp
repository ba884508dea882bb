#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>

#include "core/tokens.h"
#include "tests/core/files.h"
#include "tests/core/piece_model.h"
#include "tools/commands.h"

namespace transmamba {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::error_of;
using testing::Folder;
using ::testing::HasSubstr;
using testing::slurp;
using testing::spill;

// Documents of a split as text, without their end-of-document tokens.
std::vector<std::string> documents(const std::filesystem::path& path, Split split = Split::train) {
  const auto data = TokenDataset::open(path, split);
  const auto tokenizer = make_tokenizer(data->tokenizer(), data->tokenizer_model());
  std::vector<std::int32_t> ids(static_cast<std::size_t>(data->size()));
  data->read(0, ids);
  std::vector<std::string> out;
  std::vector<std::int32_t> document;
  for (const std::int32_t id : ids) {
    if (id != data->end_of_document()) {
      document.push_back(id);
    } else {
      out.push_back(tokenizer->decode(document));
      document.clear();
    }
  }
  EXPECT_TRUE(document.empty()) << "the last document has no end";
  EXPECT_EQ(std::ssize(out), data->num_documents());
  return out;
}

std::string lines(int count, int from = 0) {
  std::string text;
  for (int i = from; i < from + count; ++i) text += "the quick fox number " + std::to_string(i) + " jumps\n";
  return text;
}

class Prepare : public ::testing::Test {
 protected:
  std::string at(const std::string& name) const { return (folder / name).string(); }
  int run(std::vector<std::string> arguments) {
    ::testing::internal::CaptureStdout();
    int status = -1;
    try {
      Process process;
      status = prepare(process, std::move(arguments));
    } catch (...) {
      ::testing::internal::GetCapturedStdout();
      throw;
    }
    output = ::testing::internal::GetCapturedStdout();
    return status;
  }
  std::string failing(std::vector<std::string> arguments) {
    return error_of([&] { run(std::move(arguments)); });
  }
  std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder.path()))
      names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  }

  const Folder folder;
  std::string output;
};

TEST_F(Prepare, MakesOneDocumentOfEachFile) {
  const std::string a = lines(300'000), b = "no line feed \xFF at the end";  // `a` is more than one block
  spill(folder / "a.txt", a);
  spill(folder / "b.txt", b);
  spill(folder / "empty.txt", "");
  EXPECT_EQ(run({"--input", at("a.txt"), at("empty.txt"), at("b.txt"), "--output", at("t.h5")}), 0);
  EXPECT_THAT(documents(folder / "t.h5"), ElementsAre(a, b));
  EXPECT_THAT(output,
              AllOf(HasSubstr("2 documents"), HasSubstr(std::to_string(a.size() + b.size() + 2) + " tokens"),
                    HasSubstr(std::to_string(a.size() + b.size()) + " bytes")));
  EXPECT_THAT(files(), ElementsAre("a.txt", "b.txt", "empty.txt", "t.h5"));
}

TEST_F(Prepare, CutsValidationFromTheEndAtALine) {
  const std::string a = lines(700), b = lines(300, 700);
  spill(folder / "a.txt", a);
  spill(folder / "b.txt", b);
  for (const double fraction : {0.002, 0.1, 0.29, 0.6, 0.99}) {
    run({"--input", at("a.txt"), at("b.txt"), "--output", at("t.h5"), "--validation-fraction",
         std::to_string(fraction)});
    std::string train, validation;
    for (const std::string& text : documents(folder / "t.h5")) train += text;
    for (const std::string& text : documents(folder / "t.h5", Split::validation)) validation += text;
    EXPECT_EQ(train + validation, a + b);
    EXPECT_EQ(train.back(), '\n');
    EXPECT_NEAR(static_cast<double>(validation.size()), fraction * static_cast<double>(a.size() + b.size()),
                40);
    const std::size_t pieces =
        documents(folder / "t.h5").size() + documents(folder / "t.h5", Split::validation).size();
    EXPECT_LE(pieces, 3U);  // the one that was cut counts twice
  }
  spill(folder / "one.txt", std::string(1000, 'x'));
  EXPECT_THAT(failing({"--input", at("one.txt"), "--output", at("u.h5"), "--validation-fraction", "0.5"}),
              HasSubstr("no line begins"));
  EXPECT_THAT(files(), ElementsAre("a.txt", "b.txt", "one.txt", "t.h5"));
}

TEST_F(Prepare, ReadsTheTextFieldOfJsonLines) {
  spill(folder / "d.jsonl",
        "{\"text\": \"one\\ntwo \\u00ef\", \"id\": 1}\n\n{\"id\": 2, \"text\": \"three\"}\r\n{\"text\": "
        "\"\"}\n{\"text\": \"four\"}");
  run({"--input", at("d.jsonl"), "--output", at("t.h5"), "--validation-fraction", "0.2"});
  EXPECT_THAT(documents(folder / "t.h5"), ElementsAre("one\ntwo \xC3\xAF", "three"));
  EXPECT_THAT(documents(folder / "t.h5", Split::validation), ElementsAre("four"));
  std::string large = "{\"text\": \"" + std::string(9'000'000, 'y') + "\"}\n";  // longer than a block
  spill(folder / "large.jsonl", "{\"text\": \"x\"}\n" + large + "{\"text\": \"z\"}\n");
  run({"--input", at("large.jsonl"), "--output", at("t.h5")});
  const auto texts = documents(folder / "t.h5");
  ASSERT_EQ(texts.size(), 3U);
  EXPECT_EQ(texts[1].size(), 9'000'000U);
  EXPECT_EQ(texts[2], "z");
}

TEST_F(Prepare, SaysWhichJsonLineIsBad) {
  const auto bad = [&](const std::string& line) {
    spill(folder / "d.jsonl", "{\"text\": \"fine\"}\n" + line + "\n");
    return failing({"--input", at("d.jsonl"), "--output", at("t.h5")});
  };
  EXPECT_THAT(bad("{\"text\": "), AllOf(HasSubstr("d.jsonl:2"), HasSubstr("not JSON")));
  EXPECT_THAT(bad("{\"txt\": \"a\"}"),
              AllOf(HasSubstr("d.jsonl:2"), HasSubstr("\"text\""), HasSubstr("txt")));
  EXPECT_THAT(bad("{\"text\": 5}"), HasSubstr("d.jsonl:2"));
  EXPECT_THAT(bad("[1]"), HasSubstr("d.jsonl:2"));
  EXPECT_THAT(bad("{\"text\": \"\xFF\"}"), HasSubstr("d.jsonl:2"));
  EXPECT_THAT(files(), ElementsAre("d.jsonl"));
}

TEST_F(Prepare, IsLosslessWithSentencePieceWhateverTheThreads) {
  const std::string name = "sentencepiece:" + testing::piece_model(folder).string();
  std::string text =
      lines(4000) + "\n\n  spaces \t tab\r\n na\xC3\xAFve \xF0\x9F\x98\x80 \xE2\x96\x81 \xFF\n";
  spill(folder / "a.txt", text);
  run({"--input", at("a.txt"), "--output", at("t.h5"), "--tokenizer", name, "--threads", "3"});
  run({"--input", at("a.txt"), "--output", at("u.h5"), "--tokenizer", name, "--threads", "1"});
  EXPECT_EQ(slurp(folder / "t.h5"), slurp(folder / "u.h5"));
  std::filesystem::remove(folder / "pieces.model");  // its copy is in the token file
  EXPECT_THAT(documents(folder / "t.h5"), ElementsAre(text));
}

TEST_F(Prepare, ExplainsItselfAndItsErrors) {
  EXPECT_EQ(run({"--help"}), 0);
  EXPECT_THAT(output, AllOf(HasSubstr("--input"), HasSubstr("--validation-fraction"), HasSubstr("jsonl")));
  spill(folder / "a.txt", lines(10));
  spill(folder / "empty.txt", "");
  EXPECT_THAT(failing({"--output", at("t.h5")}), HasSubstr("--input"));
  EXPECT_THAT(failing({"--input", at("a.txt")}), HasSubstr("--output"));
  EXPECT_THAT(failing({"--input", at("a.txt"), "--output", at("t.h5"), "--tokeniser", "bytes"}),
              HasSubstr("tokeniser"));
  EXPECT_THAT(failing({"--input", at("b.txt"), "--output", at("t.h5")}),
              AllOf(HasSubstr("b.txt"), HasSubstr("no such file")));
  EXPECT_THAT(failing({"--input", folder.path().string(), "--output", at("t.h5")}), HasSubstr("folder"));
  EXPECT_THAT(failing({"--input", at("empty.txt"), "--output", at("t.h5")}), HasSubstr("empty"));
  EXPECT_THAT(failing({"--input", at("a.txt"), "--output", at("a.txt")}), HasSubstr("both input and output"));
  EXPECT_THAT(failing({"--input", at("a.txt"), "--output", at("t.h5"), "--validation-fraction", "1"}),
              HasSubstr("not 1"));
  EXPECT_THAT(failing({"--input", at("a.txt"), "--output", at("t.h5"), "--tokenizer", "words"}),
              HasSubstr("'words'"));
  EXPECT_THAT(failing({"--input", at("a.txt"), "--output", at("no/t.h5")}),
              HasSubstr("No such file or directory"));
  EXPECT_THAT(files(), ElementsAre("a.txt", "empty.txt"));
  EXPECT_EQ(slurp(folder / "a.txt"), lines(10));
}

TEST_F(Prepare, AFullDiskKeepsTheOldFile) {
  spill(folder / "a.txt", lines(20'000));
  spill(folder / "t.h5", "old");
  const auto on_a_small_disk = [&] {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit size{400'000, 400'000};
    ::setrlimit(RLIMIT_FSIZE, &size);
    try {
      Process process;
      prepare(process, {"--input", at("a.txt"), "--output", at("t.h5")});
    } catch (const Error& error) {
      std::exit(std::string(error.what()).find("File too large") != std::string::npos ? 4 : 5);
    }
    std::exit(0);
  };
  EXPECT_EXIT(on_a_small_disk(), ::testing::ExitedWithCode(4), "");
  EXPECT_EQ(slurp(folder / "t.h5"), "old");
  EXPECT_THAT(files(), ElementsAre("a.txt", "t.h5"));
}

}  // namespace
}  // namespace transmamba
