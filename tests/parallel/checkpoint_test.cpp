// Checkpoints: what is saved comes back, whole or not at all.
#include "parallel/checkpoint_writer.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <map>
#include <thread>

#include "core/hdf5_file.h"
#include "tests/core/files.h"
#include "tests/parallel/small_run.h"

namespace transmamba {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using testing::error_of;
using testing::Folder;
using ::testing::HasSubstr;
using testing::slurp;
using testing::small_config;
using testing::SmallRun;
using testing::spill;

std::vector<std::string> names_in(const fs::path& root) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(root)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

class CheckpointTest : public ::testing::Test {
 protected:
  fs::path step(int number) const { return folder.path() / fmt::format("step_{:08}", number); }
  std::string loading(const fs::path& from) const {
    return error_of([&] { SmallRun(0).load(from); });
  }
  const Folder folder;
};

TEST_F(CheckpointTest, OfBfloat16HoldsTheMasterWeights) {
  const SmallRun saved(7, small_config(), DType::bf16);
  saved.save(folder.path(), 42);
  SmallRun again(0, small_config(), DType::bf16), wide(0);
  again.load(step(42)), wide.load(step(42));
  EXPECT_EQ(again.bits(), saved.bits());
  EXPECT_EQ(Hdf5File::open(step(42) / "index.h5").element_type("params/embedding.weight"), "float32");
  std::map<std::string, std::string> bits;  // runs stand in the same order, with their names
  for (const OwnedRun& run : wide.optimizer.owned()) {
    const Parameter& p = wide.model.parameters().parameters()[run.parameter];
    const View weights = wide.optimizer.weights(run);
    bits[p.name] = std::string(reinterpret_cast<const char*>(weights.raw()),
                               static_cast<std::size_t>(weights.numel()) * sizeof(float));
  }
  for (const OwnedRun& run : saved.optimizer.owned()) {
    const Parameter& p = saved.model.parameters().parameters()[run.parameter];
    const View weights = saved.optimizer.weights(run);
    ASSERT_EQ(weights.dtype(), DType::f32);
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(weights.raw()), bits[p.name].size()), bits[p.name]);
    const Parameter& loaded = again.model.parameters().parameters()[run.parameter];
    ASSERT_EQ(loaded.value.dtype(), p.weight_decay ? DType::bf16 : DType::f32) << p.name;
    for (std::int64_t i = 0; p.weight_decay && i < weights.numel(); ++i)
      ASSERT_EQ(loaded.value.ptr<bfloat16>()[i].bits, to_bfloat16(weights.ptr<float>()[i]).bits) << p.name;
  }
}

TEST_F(CheckpointTest, OfAnotherTypeIsRoundedOnce) {
  const SmallRun saved(7, small_config(), DType::f64);
  saved.save(folder.path(), 42);
  SmallRun narrow(0, small_config(), DType::bf16), wide(0);
  narrow.load(step(42)), wide.load(step(42));
  for (const OwnedRun& run : narrow.optimizer.owned()) {
    const Parameter& p = wide.model.parameters().parameters()[run.parameter];
    const View weights = narrow.optimizer.weights(run);
    for (std::int64_t i = 0; i < weights.numel(); ++i)
      ASSERT_EQ(weights.ptr<float>()[i], p.value.ptr<float>()[run.begin + i]) << p.name;
  }
}

TEST_F(CheckpointTest, BringsBackEveryBit) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    const SmallRun saved(7, small_config(), dtype);
    const std::string model("\0pieces\xFF\n", 9);
    saved.save(folder.path(), 42, 0, {"sentencepiece:a.model", model});
    SmallRun loaded(0, small_config(), dtype);
    ASSERT_NE(loaded.bits(), saved.bits());
    loaded.load(step(42));
    EXPECT_EQ(loaded.bits(), saved.bits()) << to_string(dtype);
    const Checkpoint checkpoint(step(42));
    EXPECT_EQ(checkpoint.state().step, 42);
    EXPECT_EQ(checkpoint.state().consumed_sequences, 420);
    EXPECT_EQ(checkpoint.config(), saved.config);
    EXPECT_EQ(checkpoint.tokenizer().name, "sentencepiece:a.model");
    EXPECT_EQ(checkpoint.tokenizer().model, model);
  }
}

TEST_F(CheckpointTest, KeepsTheNewest) {
  const SmallRun run(1);
  for (const int number : {8, 9, 10, 11}) run.save(folder.path(), number, 2);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("step_00000010", "step_00000011"));
  EXPECT_THAT(list_checkpoints(folder.path()), ElementsAre(step(11), step(10)));
  run.save(folder.path(), 12, 0);
  EXPECT_THAT(list_checkpoints(folder.path()), ElementsAre(step(12), step(11), step(10)));
  EXPECT_THAT(list_checkpoints(folder.path(), 10), ElementsAre(step(12), step(11)));
  run.save(folder.path(), 100'000'000, 2);  // a longer name
  EXPECT_THAT(list_checkpoints(folder.path()), ElementsAre(folder / "step_100000000", step(12)));
}

TEST_F(CheckpointTest, IgnoresWhatACrashLeftAndRemovesItAtTheNextSave) {
  const SmallRun run(1);
  run.save(folder.path(), 1);
  fs::copy(step(1), folder / "step_00000002.partial");
  fs::copy(step(1), folder / "step_00000001.replaced.partial");
  fs::create_directory(folder / "step_notes");  // a user's own
  EXPECT_THAT(list_checkpoints(folder.path()), ElementsAre(step(1)));
  run.save(folder.path(), 2);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("step_00000001", "step_00000002", "step_notes"));
}

TEST_F(CheckpointTest, ReplacesTheSameStep) {
  const SmallRun first(1), second(2);
  first.save(folder.path(), 5);
  spill(step(5) / "notes.txt", "of the first");
  second.save(folder.path(), 5, 1);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("step_00000005"));
  EXPECT_THAT(names_in(step(5)), ElementsAre("index.cksum", "index.h5", "shard_00000.h5"));
  SmallRun loaded(0);
  loaded.load(step(5));
  EXPECT_EQ(loaded.bits(), second.bits());
}

TEST_F(CheckpointTest, ReplacesTheSameStepWithoutAMomentWithoutIt) {
  const SmallRun run(1);
  run.save(folder.path(), 5);
  // Not every file system can swap two folders; there a crash between two renames leaves the older
  // checkpoints.
  fs::create_directories(folder / "a/b");
  fs::create_directories(folder / "c");
  const bool swaps =
      ::renameat2(AT_FDCWD, (folder / "a").c_str(), AT_FDCWD, (folder / "c").c_str(), RENAME_EXCHANGE) == 0;
  EXPECT_EQ(fs::exists(folder / "c/b"), swaps);
  std::atomic<bool> done = false;
  std::thread saver([&] {
    for (int i = 0; i < 20; ++i) run.save(folder.path(), 5);
    done = true;
  });
  int missing = 0;
  while (!done) missing += !fs::exists(step(5) / "index.h5");
  saver.join();
  EXPECT_EQ(swaps ? missing : 0, 0) << "moments without the checkpoint";
  SmallRun loaded(0);
  loaded.load(step(5));
  EXPECT_EQ(loaded.bits(), run.bits());
}

TEST_F(CheckpointTest, SetsAsideLaterStepsOfARunThatIsReplaced) {
  const SmallRun first(1), second(2);
  for (const int number : {2, 4, 6}) first.save(folder.path(), number, 2);
  second.save(folder.path(), 3, 2);  // resumed from step 2, say
  EXPECT_THAT(list_checkpoints(folder.path()), ElementsAre(step(3)));
  EXPECT_THAT(names_in(folder.path()),
              ElementsAre("step_00000003", "step_00000004.old", "step_00000006.old"));
  SmallRun loaded(0);
  loaded.load(folder / "step_00000006.old");  // nothing is lost
  EXPECT_EQ(loaded.bits(), first.bits());
  second.save(folder.path(), 6, 2);
  second.save(folder.path(), 5, 2);  // once more: another name
  loaded.load(folder / "step_00000006.old2");
  EXPECT_EQ(loaded.bits(), second.bits());
  loaded.load(folder / "step_00000006.old");
  EXPECT_EQ(loaded.bits(), first.bits());
}

TEST_F(CheckpointTest, ShowsEveryTensorAtItsGlobalShapeUnderItsReferenceName) {
  const SmallRun run(3);
  run.save(folder.path(), 1);
  const Hdf5File index = Hdf5File::open(step(1) / "index.h5");
  std::vector<std::string> expected;
  for (const std::string group : {"params/", "optimizer/m/", "optimizer/v/"})
    for (const Parameter& p : run.model.parameters().parameters()) {
      expected.push_back(group + p.name);
      Hdf5File::Extents shape;
      for (int i = 0; i < p.shard.global.rank(); ++i) shape.push_back(p.shard.global[i]);
      EXPECT_EQ(index.shape(expected.back()), shape) << expected.back();
      EXPECT_EQ(index.element_type(expected.back()), "float32") << expected.back();
    }
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(index.datasets(), expected);
  EXPECT_THAT(expected, Contains("params/layers.0.mixer.q_proj.weight"));
  EXPECT_THAT(expected, Contains("optimizer/v/layers.1.mlp.down_proj.weight"));
  const auto embedding = index.read_vector<float>("params/embedding.weight");
  const Parameter& first = run.model.parameters().parameters()[0];
  ASSERT_EQ(first.name, "embedding.weight");
  const auto* values = first.value.ptr<float>();
  EXPECT_EQ(embedding, std::vector<float>(values, values + first.value.numel()));
}

TEST_F(CheckpointTest, NamesTheFolderAndWhatIsMissing) {
  SmallRun(1).save(folder.path(), 1);
  EXPECT_THAT(loading(step(2)), AllOf(HasSubstr("[checkpoint]"), HasSubstr(step(2).string()),
                                      HasSubstr("expected a checkpoint folder, found nothing")));
  EXPECT_THAT(loading(step(1) / "index.h5"), HasSubstr("found a file"));
  EXPECT_THAT(loading(folder.path()), AllOf(HasSubstr("index.h5 is missing"), HasSubstr("step_ folders")));
  fs::rename(step(1) / "index.h5", folder / "index");
  EXPECT_THAT(loading(step(1)), AllOf(HasSubstr(step(1).string()), HasSubstr("index.h5 is missing")));
  fs::rename(folder / "index", step(1) / "index.h5");
  fs::remove(step(1) / "shard_00000.h5");
  EXPECT_THAT(loading(step(1)),
              AllOf(HasSubstr((step(1) / "shard_00000.h5").string()), HasSubstr("no such")));
}

TEST_F(CheckpointTest, NamesTheFileThatIsTruncatedOrForeign) {
  SmallRun(1).save(folder.path(), 1);
  const fs::path index = step(1) / "index.h5", shard = step(1) / "shard_00000.h5";
  const std::string index_bytes = slurp(index), shard_bytes = slurp(shard);
  for (const std::size_t size :
       {shard_bytes.size() - 1, shard_bytes.size() / 2, std::size_t{10}, std::size_t{0}}) {
    spill(shard, shard_bytes.substr(0, size));
    EXPECT_THAT(loading(step(1)), AllOf(HasSubstr(shard.string()), HasSubstr("truncated"))) << size;
  }
  spill(shard, shard_bytes);
  spill(index, index_bytes.substr(0, index_bytes.size() - 7));
  EXPECT_THAT(loading(step(1)), AllOf(HasSubstr(index.string()), HasSubstr("damaged")));
  spill(index, "a text that somebody put here, longer than a signature");
  EXPECT_THAT(loading(step(1)), AllOf(HasSubstr(index.string()), HasSubstr("not an HDF5 file")));
  spill(index, shard_bytes);  // HDF5, but no index
  EXPECT_THAT(loading(step(1)), AllOf(HasSubstr(index.string()), HasSubstr("damaged")));
  fs::remove(step(1) / "index.cksum");
  EXPECT_THAT(loading(step(1)),
              AllOf(HasSubstr(step(1).string()), HasSubstr("not the index of a checkpoint")));
}

TEST_F(CheckpointTest, NoticesAFlippedByteAnywhere) {
  const SmallRun run(1);
  run.save(folder.path(), 1);
  for (const std::string name : {"index.h5", "shard_00000.h5"}) {
    const fs::path path = step(1) / name;
    const std::string whole = slurp(path);
    int noticed = 0, harmless = 0;
    const std::size_t stride = whole.size() / 150 | 1U;
    for (std::size_t at = 1; at < whole.size(); at += stride) {
      std::string bytes = whole;
      bytes[at] = static_cast<char>(bytes[at] ^ 0x10);
      spill(path, bytes);
      SmallRun loaded(0);
      try {
        loaded.load(step(1));
        EXPECT_EQ(loaded.bits(), run.bits()) << name << ": byte " << at << " changed what was loaded";
        ++harmless;  // unused space of the format
      } catch (const Error& error) {
        EXPECT_THAT(error.what(), HasSubstr(step(1).string())) << name << ": byte " << at;
        ++noticed;
      }
    }
    EXPECT_GT(noticed, 4 * harmless) << name;
    spill(path, whole);
  }
  SmallRun loaded(0);
  loaded.load(step(1));
  EXPECT_EQ(loaded.bits(), run.bits());
}

TEST_F(CheckpointTest, NamesTheKeysOfAnotherModel) {
  Config other = small_config(32);
  other.model.tie_embeddings = true;
  other.model.transpoints = "transformer";  // may differ
  SmallRun(1, other).save(folder.path(), 1);
  const Checkpoint checkpoint(step(1));
  const std::string message = error_of([&] {
    check_same_model(checkpoint.config().model, small_config().model, checkpoint.folder().string());
  });
  EXPECT_THAT(message,
              AllOf(HasSubstr(step(1).string()), HasSubstr("model.hidden_size is 32 there and 16 here"),
                    HasSubstr("model.tie_embeddings is true there and false here")));
  EXPECT_THAT(message, ::testing::Not(HasSubstr("transpoints")));
  EXPECT_THAT(loading(step(1)), AllOf(HasSubstr(step(1).string()), HasSubstr("embedding.weight"),
                                      HasSubstr("expected shape"), HasSubstr("32")));
}

TEST_F(CheckpointTest, NamesAnotherFormatVersion) {
  SmallRun(1).save(folder.path(), 1);
  Hdf5File index = Hdf5File::create(step(1) / "index.h5");
  index.set_attribute("format_version", std::int64_t{99});
  index.close();
  fs::remove(step(1) / "index.cksum");
  EXPECT_THAT(loading(step(1)),
              AllOf(HasSubstr(step(1).string()), HasSubstr("format version: expected 1, got 99")));
}

TEST_F(CheckpointTest, AFullDiskLeavesTheLastGoodOne) {
  const SmallRun good(1), next(2);
  good.save(folder.path(), 1);
  const auto size = static_cast<rlim_t>(fs::file_size(step(1) / "shard_00000.h5"));
  // In the shard's data, at its very end, and (the same step again) with a good one of that name there.
  for (const auto& disk : {std::pair{size / 2, 2}, {size - 1, 2}, {rlim_t{100}, 2}, {size / 2, 1}}) {
    const auto limit = disk.first;
    const int number = disk.second;
    const auto on_a_small_disk = [&] {
      std::signal(SIGXFSZ, SIG_IGN);
      const rlimit files{limit, limit};
      ::setrlimit(RLIMIT_FSIZE, &files);
      std::string message;
      try {
        next.save(folder.path(), number, 1);
      } catch (const Error& error) {
        message = error.what();
      }
      const bool says =
          message.find(fmt::format("step {} could not be saved", number)) != std::string::npos &&
          message.find("File too large") != std::string::npos && message.find('\n') == std::string::npos;
      std::exit(message.empty() ? 3 : says ? 4 : 5);
    };
    EXPECT_EXIT(on_a_small_disk(), ::testing::ExitedWithCode(4), "") << limit;
    EXPECT_THAT(names_in(folder.path()), ElementsAre("step_00000001")) << limit;
    SmallRun loaded(0);
    loaded.load(step(1));
    EXPECT_EQ(loaded.bits(), good.bits()) << limit;
  }
}

TEST_F(CheckpointTest, IsOfTheMomentAtWhichItWasBegunWhateverTrainingDoesMeanwhile) {
  SmallRun run(1);
  const auto world = self_communicator();
  CheckpointConfig where;
  where.path = folder.path(), where.every = 1;
  CheckpointWriter writer(*world, where, run.config, {"bytes", ""}, run.model.parameters(), run.optimizer);
  const std::vector<std::string> begun = run.bits();
  writer.begin({3, 30});
  EXPECT_TRUE(writer.is_under_way());
  for (const OwnedRun& owned : run.optimizer.owned())
    for (const View& view : optimizer_views(run.optimizer, owned)) fill({.value = 7, .y = view}, {});
  ASSERT_NE(run.bits(), begun);
  while (writer.is_under_way()) {
    EXPECT_TRUE(list_checkpoints(folder.path()).empty()) << "not before it is whole";
    while (writer.is_busy()) std::this_thread::yield();
    writer.advance(writer.has_failed());
  }
  SmallRun loaded(0);
  loaded.load(step(3));
  EXPECT_EQ(loaded.bits(), begun);
  writer.begin({4, 40});
  writer.begin({5, 50});  // after the one before
  writer.finish();
  EXPECT_THAT(list_checkpoints(folder.path()), ElementsAre(step(5), step(4), step(3)));
  loaded.load(step(4));
  EXPECT_EQ(loaded.bits(), run.bits());
}

TEST_F(CheckpointTest, ThatCannotBeWrittenBesideTrainingSaysSoAtItsEnd) {
  SmallRun(1).save(folder.path(), 1);
  const auto on_a_small_disk = [&] {
    SmallRun run(2);
    CheckpointConfig where;
    where.path = folder.path(), where.every = 1;
    const auto world = self_communicator();
    CheckpointWriter writer(*world, where, run.config, {"bytes", ""}, run.model.parameters(), run.optimizer);
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit small{1000, RLIM_INFINITY}, large{RLIM_INFINITY, RLIM_INFINITY};
    ::setrlimit(RLIMIT_FSIZE, &small);
    writer.begin({2, 20});
    const std::string message = error_of([&] { writer.finish(); });
    const bool says = message.find("step 2 could not be saved") != std::string::npos &&
                      message.find("File too large") != std::string::npos && !writer.is_under_way();
    ::setrlimit(RLIMIT_FSIZE, &large);
    writer.begin({3, 30}), writer.finish();  // another time
    std::exit(says ? 4 : 5);
  };
  EXPECT_EXIT(on_a_small_disk(), ::testing::ExitedWithCode(4), "");
  EXPECT_THAT(names_in(folder.path()), ElementsAre("step_00000001", "step_00000003"));
}

TEST_F(CheckpointTest, SaysBeforeTheRunThatItCannotSave) {
  spill(folder / "file", "");
  CheckpointConfig where;
  where.path = folder / "file/checkpoints";
  EXPECT_THAT(error_of([&] { prepare_checkpoints(*self_communicator(), where); }),
              AllOf(HasSubstr("checkpoint.path"), HasSubstr("Not a directory")));
  where.path = "/proc/checkpoints";
  EXPECT_THAT(error_of([&] { prepare_checkpoints(*self_communicator(), where); }),
              HasSubstr("/proc/checkpoints"));
  where.path = folder / "a/b";
  prepare_checkpoints(*self_communicator(), where);
  prepare_checkpoints(*self_communicator(), where);
  EXPECT_TRUE(names_in(folder / "a/b").empty());
}

}  // namespace
}  // namespace transmamba
