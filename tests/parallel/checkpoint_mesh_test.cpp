// Checkpoints across meshes: what some ranks saved together, other ranks load.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <map>
#include <ostream>

#include "parallel/checkpoint_writer.h"
#include "tests/core/files.h"
#include "tests/parallel/worlds.h"

namespace transmamba {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::error_of;
using testing::Folder;
using ::testing::HasSubstr;
using testing::slurp;
using testing::spill;

struct Degrees {
  std::int64_t tp = 1, cp = 1, pp = 1, dp = 1, virtual_stages = 1;
  int ranks() const { return static_cast<int>(tp * cp * pp * dp); }
};
std::ostream& operator<<(std::ostream& out, const Degrees& d) {
  return out << "tp " << d.tp << " cp " << d.cp << " pp " << d.pp << " dp " << d.dp << " virtual stages "
             << d.virtual_stages;
}

/// With four ranks of tensor parallelism one has no words of five, and ends of the pipeline share them.
Config small(const std::string& dtype = "float64") {
  Config c;
  c.model.vocab_size = 5;
  c.model.hidden_size = 12;
  c.model.num_layers = 4;
  c.model.layer_pattern = "T-";
  c.model.num_heads = 4;
  c.model.qk_head_dim = 4;
  c.model.v_head_dim = 3;
  c.model.ffn_hidden_size = 20;
  c.model.transpoints = "3,16";
  c.model.init_std = 0.3;
  c.model.tie_embeddings = true;
  c.train.seq_len = 16;
  c.train.micro_batch = 1;
  c.train.global_batch = 8;
  c.train.steps = 10;
  c.train.dtype = dtype;
  c.train.seed = 5;
  c.optimizer.lr = 1e-3;
  c.optimizer.warmup_steps = 0;
  return c;
}

/// One rank of a run.
struct Rank {
  Rank(Communicator& world, const Config& c)
      : world(world),
        config(c),
        context{{}, c.train.dtype == "float64" ? DType::f64 : DType::f32, &memory},
        mesh(world, config.parallel),
        engine(config, place(config, mesh), context) {}

  void load(const fs::path& folder) {
    const Checkpoint checkpoint = open_checkpoint(world, folder);
    load_checkpoint(world, checkpoint, engine.model().parameters(), engine.optimizer());
    state = checkpoint.state();
  }
  double step() {
    const StepResult result = engine.step(state.step, [&](std::int64_t i) {
      return testing::batch_at(context, config, state.step,
                               (i * mesh.dp() + mesh.dp_index()) * config.train.micro_batch);
    });
    ++state.step;
    state.consumed_sequences += config.train.global_batch;
    return result.loss;
  }
  void save(const fs::path& root, std::int64_t keep = 0) {
    engine.finish();
    CheckpointConfig where;
    where.path = root, where.keep = keep;
    save_checkpoint(world, where, state, config, {"bytes", ""}, engine.model().parameters(),
                    engine.optimizer());
  }

  Communicator& world;
  Config config;
  Allocator memory;
  Context context;
  Mesh mesh;
  Engine engine;
  TrainState state;
};

void on_mesh(Config c, const Degrees& d, const std::function<void(Rank&)>& what) {
  c.parallel.tp = d.tp, c.parallel.cp = d.cp, c.parallel.pp = d.pp, c.parallel.dp = d.dp;
  c.parallel.virtual_stages = d.virtual_stages;
  c.parallel = resolve_parallel(c, d.ranks());
  run_as_threads(d.ranks(), [&](Communicator& world) {
    Rank rank(world, c);
    what(rank);
  });
}

fs::path step_folder(const fs::path& root, int step) { return root / fmt::format("step_{:08}", step); }

/// Losses of `steps` steps from a checkpoint, or from the start, whose end is saved.
std::vector<double> train(const Config& c, const Degrees& mesh, const fs::path& from, int steps,
                          const fs::path& to) {
  std::vector<double> losses;
  on_mesh(c, mesh, [&](Rank& rank) {
    if (from.empty())
      rank.engine.model().parameters().initialise(c.train.seed);
    else
      rank.load(from);
    for (int i = 0; i < steps; ++i) {
      const double loss = rank.step();
      if (rank.world.rank() == 0) losses.push_back(loss);
    }
    rank.save(to);
  });
  return losses;
}

/// Every tensor of a checkpoint at its global shape, exactly.
std::map<std::string, std::vector<double>> tensors(const fs::path& folder) {
  const Hdf5File index = Hdf5File::open(folder / "index.h5");
  std::map<std::string, std::vector<double>> out;
  for (const std::string& name : index.datasets()) out[name] = index.read_vector<double>(name);
  return out;
}

std::vector<std::string> names_in(const fs::path& root) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(root)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

struct Case {
  Degrees saved, loaded;
  std::string dtype = "float64";
};
std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.dtype << ", " << c.saved << " to " << c.loaded;
}

class AcrossMeshes : public ::testing::TestWithParam<Case> {};

TEST_P(AcrossMeshes, EveryBitComesBackAndTrainingGoesOn) {
  const auto& [saved, loaded, dtype] = GetParam();
  const Config c = small(dtype);
  const Folder folder;
  const std::vector<double> before = train(c, saved, "", 2, folder / "a");
  train(c, loaded, step_folder(folder / "a", 2), 0, folder / "b");
  train(c, saved, step_folder(folder / "b", 2), 0, folder / "c");
  const auto first = tensors(step_folder(folder / "a", 2));
  EXPECT_GT(first.size(), 3U * 20);
  EXPECT_EQ(first, tensors(step_folder(folder / "b", 2)));
  EXPECT_EQ(first, tensors(step_folder(folder / "c", 2)));

  const std::vector<double> whole = train(c, saved, "", 4, folder / "whole");
  EXPECT_EQ((std::vector{whole[0], whole[1]}), before);
  const auto same = train(c, saved, step_folder(folder / "b", 2), 2, folder / "same");
  EXPECT_EQ(same, (std::vector{whole[2], whole[3]})) << "under the mesh that saved, every bit";
  EXPECT_EQ(tensors(step_folder(folder / "same", 4)), tensors(step_folder(folder / "whole", 4)));
  const auto other = train(c, loaded, step_folder(folder / "a", 2), 2, folder / "other");
  for (const std::size_t i : {0U, 1U})
    EXPECT_NEAR(other[i] / whole[i + 2], 1, dtype == "float64" ? 1e-12 : 1e-5) << "step " << i + 3;
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, AcrossMeshes,
                         ::testing::Values(Case{{}, {.tp = 2, .pp = 2}},
                                           Case{{.tp = 4}, {.pp = 2, .dp = 2, .virtual_stages = 2}},
                                           Case{{.tp = 2, .cp = 2, .dp = 2}, {.tp = 4, .pp = 2}},
                                           Case{{.cp = 2, .pp = 2, .dp = 2, .virtual_stages = 2}, {.dp = 8}},
                                           Case{{.pp = 4, .dp = 2}, {.tp = 2, .cp = 2}},
                                           Case{{.tp = 2, .pp = 2, .dp = 2}, {}, "float32"},
                                           Case{{.cp = 4}, {.tp = 4, .dp = 2}, "float32"}));

TEST(CheckpointOfManyRanks, IsShownWholeByOneIndex) {
  const Folder folder;
  const Config c = small();
  train(c, {.tp = 2, .cp = 2, .pp = 2}, "", 1, folder.path());
  EXPECT_THAT(
      names_in(step_folder(folder.path(), 1)),
      ElementsAre("index.cksum", "index.h5", "shard_00000.h5", "shard_00001.h5", "shard_00002.h5",
                  "shard_00003.h5", "shard_00004.h5", "shard_00005.h5", "shard_00006.h5", "shard_00007.h5"));
  Allocator memory;
  const Model model(c.model, resolve_transpoints(c.model, c.train.seq_len), {{}, DType::f64, &memory});
  const Hdf5File index = Hdf5File::open(step_folder(folder.path(), 1) / "index.h5");
  EXPECT_EQ(index.attribute<std::int64_t>("shards"), 8);
  EXPECT_EQ(index.datasets().size(), 3 * model.parameters().parameters().size());
  for (const Parameter& p : model.parameters().parameters())
    for (const std::string group : {"params/", "optimizer/m/", "optimizer/v/"}) {
      Hdf5File::Extents shape;
      for (int i = 0; i < p.shard.global.rank(); ++i) shape.push_back(p.shard.global[i]);
      EXPECT_EQ(index.shape(group + p.name), shape) << group << p.name;
    }
}

TEST(CheckpointOfManyRanks, AlternatesKeepsAndSetsAsideLikeThatOfOne) {
  const Folder folder;
  on_mesh(small(), {.tp = 2, .dp = 2}, [&](Rank& rank) {
    rank.engine.model().parameters().initialise(1);
    for (const int step : {2, 4, 6, 6, 5}) {
      rank.state.step = step;
      rank.save(folder.path(), 2);
    }
    const auto seen = list_checkpoints(rank.world, folder.path());
    EXPECT_THAT(seen, ElementsAre(step_folder(folder.path(), 5), step_folder(folder.path(), 4)));
    EXPECT_TRUE(list_checkpoints(rank.world, folder.path(), 5).empty());
  });
  EXPECT_THAT(names_in(folder.path()), ElementsAre("step_00000004", "step_00000005", "step_00000006.old"));
}

/// What every rank of a small run says where something fails on one of them.
class Failing : public ::testing::Test {
 protected:
  void SetUp() override { train(c, mesh, "", 1, folder.path()); }
  /// All ranks catch the same Error, and go on.
  std::string saying(const std::function<void(Rank&)>& what) const {
    std::vector<std::string> errors(static_cast<std::size_t>(mesh.ranks()));
    on_mesh(c, mesh, [&](Rank& rank) {
      errors[static_cast<std::size_t>(rank.world.rank())] = error_of([&] { what(rank); });
      rank.world.barrier("all go on");
    });
    for (const std::string& error : errors) EXPECT_EQ(error, errors[0]);
    return errors[0];
  }
  std::string loading() const {
    return saying([&](Rank& rank) { rank.load(step(1)); });
  }
  fs::path step(int number) const { return step_folder(folder.path(), number); }
  void expect_only_the_first() const {
    EXPECT_THAT(names_in(folder.path()), ElementsAre("step_00000001"));
    on_mesh(c, mesh, [&](Rank& rank) { rank.load(step(1)); });
  }
  const Config c = small();
  const Degrees mesh{.tp = 2, .dp = 2};
  const Folder folder;
};

TEST_F(Failing, ARankWithoutTheFolderStopsTheSave) {
  const std::string message = saying([&](Rank& rank) {
    rank.load(step(1));
    rank.step();
    rank.save(rank.world.rank() == 2 ? folder / "elsewhere" : folder.path());
  });
  EXPECT_THAT(message, AllOf(HasSubstr("step 2 could not be saved"), HasSubstr("rank 2:"),
                             HasSubstr("elsewhere"), HasSubstr("shard_00002.h5"), HasSubstr("No such file")));
  expect_only_the_first();
}

TEST_F(Failing, ARootThatIsNoFolderStopsTheSave) {
  spill(folder / "step_00000001/file", "");
  EXPECT_THAT(saying([&](Rank& rank) { rank.save(step(1) / "file"); }), HasSubstr("Not a directory"));
  CheckpointConfig where;
  where.path = step(1) / "file/checkpoints";
  EXPECT_THAT(saying([&](Rank& rank) { prepare_checkpoints(rank.world, where); }),
              AllOf(HasSubstr("checkpoint.path"), HasSubstr("Not a directory")));
}

TEST_F(Failing, BesideTrainingASaveCostsNoCallBetweenRanksUnlessOneFails) {
  std::vector<std::string> errors(static_cast<std::size_t>(mesh.ranks()));
  on_mesh(c, mesh, [&](Rank& rank) {
    const auto any = [&](bool mine) {  // as training asks with its loss
      const Tensor sum = rank.context.empty({1}, DType::f64);
      *sum.ptr<double>() = mine;
      rank.world.all_reduce("flag", sum);
      return *sum.ptr<double>() > 0;
    };
    CheckpointConfig where;
    where.path = folder.path(), where.every = 1;
    CheckpointWriter writer(rank.world, where, rank.config, {"bytes", ""}, rank.engine.model().parameters(),
                            rank.engine.optimizer());
    const auto save = [&](std::int64_t step) {
      writer.begin({step, 10 * step});
      while (writer.is_under_way()) {
        while (any(writer.is_busy())) continue;
        writer.advance(any(writer.has_failed()));
      }
    };
    rank.world.recorder().reset();
    save(2);
    for (const auto& [key, traffic] : rank.world.recorder().table()) EXPECT_EQ(key.second, "flag");
    if (rank.world.rank() == 0) fs::create_directories(folder / "step_00000003.partial/shard_00002.h5");
    any(false);
    try {
      save(3);
    } catch (const Error& error) {
      errors[static_cast<std::size_t>(rank.world.rank())] = error.what();
    }
    save(4);
  });
  for (const std::string& error : errors)
    EXPECT_THAT(error, AllOf(HasSubstr("step 3 could not be saved"), HasSubstr("rank 2: "),
                             HasSubstr("shard_00002.h5")));
  EXPECT_THAT(names_in(folder.path()), ElementsAre("step_00000001", "step_00000002", "step_00000004"));
}

TEST_F(Failing, AFullDiskLeavesTheLastGoodOne) {
  std::uintmax_t largest = 0;
  for (int rank = 0; rank < mesh.ranks(); ++rank)
    largest = std::max(largest, fs::file_size(step(1) / fmt::format("shard_{:05}.h5", rank)));
  for (const int number : {1, 2}) {
    const auto on_a_small_disk = [&] {
      std::signal(SIGXFSZ, SIG_IGN);
      const rlimit files{largest - 1, largest - 1};
      ::setrlimit(RLIMIT_FSIZE, &files);
      const std::string message = saying([&](Rank& rank) {
        rank.state.step = number;
        rank.save(folder.path(), 1);
      });
      const bool says =
          message.find(fmt::format("step {} could not be saved", number)) != std::string::npos &&
          message.find("File too large") != std::string::npos && message.find("rank ") != std::string::npos &&
          message.find('\n') == std::string::npos;
      std::exit(says && !HasFailure() ? 4 : 5);
    };
    EXPECT_EXIT(on_a_small_disk(), ::testing::ExitedWithCode(4), "") << number;
    expect_only_the_first();
  }
}

TEST_F(Failing, AShardThatIsMissingTruncatedForeignOrOfAnotherSaveIsNamed) {
  const fs::path shard = step(1) / "shard_00003.h5";
  const std::string whole = slurp(shard);
  fs::remove(shard);
  EXPECT_THAT(loading(), AllOf(HasSubstr(shard.string()), HasSubstr("no such file")));
  spill(shard, whole.substr(0, whole.size() - 1));
  EXPECT_THAT(loading(), AllOf(HasSubstr(shard.string()), HasSubstr("truncated")));
  spill(shard, "a text that somebody put here, longer than a signature");
  EXPECT_THAT(loading(), AllOf(HasSubstr(shard.string()), HasSubstr("not an HDF5 file")));
  spill(shard, slurp(step(1) / "shard_00001.h5"));
  EXPECT_THAT(loading(), AllOf(HasSubstr(shard.string()), HasSubstr("expected shard 3 of 4 of step 1, found "
                                                                    "shard 1 of 4 of step 1")));
  spill(shard, whole);
  expect_only_the_first();
}

TEST_F(Failing, AFlippedByteOfAShardIsNoticedAndItsFileNamed) {
  const fs::path shard = step(1) / "shard_00001.h5";
  const auto good = tensors(step(1));
  const std::string whole = slurp(shard);
  int noticed = 0, harmless = 0;
  for (std::size_t at = 1; at < whole.size(); at += whole.size() / 60 | 1U) {
    std::string bytes = whole;
    bytes[at] = static_cast<char>(bytes[at] ^ 0x10);
    spill(shard, bytes);
    std::vector<std::string> errors(static_cast<std::size_t>(mesh.ranks()));
    on_mesh(c, mesh, [&](Rank& rank) {
      try {
        rank.load(step(1));
      } catch (const Error& error) {
        errors[static_cast<std::size_t>(rank.world.rank())] = error.what();
      }
    });
    for (const std::string& error : errors) EXPECT_EQ(error, errors[0]);
    errors[0].empty() ? ++harmless : ++noticed;
    if (errors[0].empty())
      EXPECT_EQ(tensors(step(1)), good) << "byte " << at;
    else
      EXPECT_THAT(errors[0], HasSubstr(shard.string())) << "byte " << at;
  }
  EXPECT_GT(noticed, 4 * harmless);
  spill(shard, whole);
  expect_only_the_first();
}

}  // namespace
}  // namespace transmamba
