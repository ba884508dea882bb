// Checkpoints whose index is whole and says what no run writes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/hdf5_file.h"
#include "parallel/checkpoint.h"
#include "tests/core/files.h"

namespace transmamba {
namespace {

using ::testing::AllOf;
using testing::error_of;
using testing::Folder;
using ::testing::HasSubstr;

TEST(CheckpointIndex, WithNumbersThatNoRunHasIsAnError) {
  const Folder folder;
  for (const char* name : {"step", "consumed_sequences", "shards"})
    for (const std::int64_t value : {std::int64_t{-3}, (std::int64_t{1} << 32) + 1}) {
      if (value > 0 && std::string(name) != "shards") continue;
      Hdf5File index = Hdf5File::create(folder / "index.h5");
      index.set_attribute("format_version", std::int64_t{1});
      for (const char* other : {"step", "consumed_sequences", "shards"})
        index.set_attribute(other, std::string(other) == name ? value : std::int64_t{1});
      index.set_attribute("tokenizer", std::string("bytes"));
      index.set_attribute("config", Config().to_ini());
      index.close();
      Hdf5File shard = Hdf5File::create(folder / "shard_00000.h5");
      for (const char* other : {"step", "shards"})
        shard.set_attribute(other, std::string(other) == name ? value : std::int64_t{1});
      shard.set_attribute("shard", std::int64_t{0});
      shard.close();
      EXPECT_THAT(error_of([&] { Checkpoint(folder.path(), 0, 1); }),
                  AllOf(HasSubstr(folder.path().string()), HasSubstr("shards, got"),
                        HasSubstr(std::to_string(value))))
          << name;
    }
}

}  // namespace
}  // namespace transmamba
