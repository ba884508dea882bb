#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "launch/process.h"
#include "tests/core/files.h"
#include "tools/commands.h"
#include "tools/scale/driver.h"

namespace transmamba {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::error_of;
using testing::Folder;
using ::testing::HasSubstr;
using testing::spill;
using Words = std::vector<std::string>;

std::string tiny() { return std::string(TRANSMAMBA_SOURCE_DIR) + "/configs/tiny-cpu.cfg"; }

ScaleOptions parsed(Words words) {
  words.insert(words.begin(), tiny());
  return parse_scale_options(words);
}
std::string complaint(const Words& words) {
  return error_of([&] { scale_sizes(parsed(words)); });
}
Sweep sweep_of(Words words) {
  words.insert(words.end(), {"--model.vocab_size", "256"});
  const ScaleOptions options = parsed(words);
  return make_sweep(options, scale_sizes(options), "/results/runs");
}
const ScaleRun& run_of(const Sweep& sweep, const std::string& mode, const std::string& series, int ranks) {
  for (const ScalePoint& point : sweep.points)
    if (point.mode == mode && point.series == series && sweep.runs[point.run].ranks == ranks)
      return sweep.runs[point.run];
  throw Error("no such point");
}

TEST(ScaleOptions, ReadsWhatIsAskedFor) {
  const ScaleOptions o = parsed({"--ranks", "1,2,8", "--axis=tp,cp", "--mesh", "tp=2,cp=2", "--mode", "both",
                                 "--steps", "5", "--warmup=1", "--launcher", "srun -n {ranks} --mpi=pmix",
                                 "--train.seq_len", "512", "--resume"});
  EXPECT_THAT(o.ranks, ElementsAre(1, 2, 8));
  ASSERT_EQ(o.series.size(), 3U);
  EXPECT_EQ(o.series[1].axis, "cp");
  EXPECT_EQ(o.series[2].name, "tp=2,cp=2");
  EXPECT_EQ(o.series[2].tp * o.series[2].cp * o.series[2].pp, 4);
  EXPECT_THAT(o.modes, ElementsAre("strong", "weak"));
  EXPECT_EQ(o.steps, 5);
  EXPECT_EQ(o.warmup, 1);
  EXPECT_THAT(o.launcher, ElementsAre("srun", "-n", "{ranks}", "--mpi=pmix"));
  EXPECT_THAT(o.overrides, ElementsAre("--train.seq_len", "512"));
  EXPECT_TRUE(o.resume);
  EXPECT_EQ(parsed({"--ranks", "1", "--axis", "all"}).series.size(), 4U);
}

TEST(ScaleOptions, MakesASizeOfEachFileOrSetOfKeys) {
  const auto names = [](const std::string& sizes) {
    Words found;
    for (const ScaleSize& size : scale_sizes(parsed({"--ranks", "1", "--sizes", sizes})))
      found.push_back(
          fmt::format("{} {} {}", size.name, size.config.model.num_layers, size.config.model.hidden_size));
    return found;
  };
  EXPECT_THAT(names("num_layers=2,6"), ElementsAre("num_layers=2 2 128", "num_layers=6 6 128"));
  EXPECT_THAT(names("num_layers=2+model.hidden_size=64," + tiny()),
              ElementsAre("num_layers=2+model.hidden_size=64 2 64", "tiny-cpu 4 128"));
}

TEST(ScaleOptions, SaysWhatIsWrong) {
  EXPECT_THAT(complaint({}), HasSubstr("--ranks LIST"));
  for (const char* ranks : {"2,1", "1,1", "0,1", "1,two", "", "1,"})
    EXPECT_THAT(complaint({"--ranks", ranks}),
                AllOf(HasSubstr("[scale] --ranks: expected"), HasSubstr("integer")))
        << ranks;
  EXPECT_THAT(complaint({"--ranks", "1", "--axis", "ep"}), HasSubstr("dp, tp, cp, pp, got \"ep\""));
  EXPECT_THAT(complaint({"--ranks", "1", "--axis", "dp,dp"}), HasSubstr("dp is given twice"));
  EXPECT_THAT(complaint({"--ranks", "1", "--mesh", "dp=2"}), HasSubstr("dp takes what remains"));
  EXPECT_THAT(complaint({"--ranks", "1", "--mode", "weird"}), HasSubstr("strong, weak, both"));
  EXPECT_THAT(complaint({"--ranks", "1", "--steps", "3"}),
              HasSubstr("--warmup: expected fewer steps than --steps = 3"));
  EXPECT_THAT(complaint({"--ranks", "1", "--launcher", "mpirun -np 2"}), HasSubstr("{ranks}"));
  EXPECT_THAT(complaint({"--ranks", "1", "--limit", "nan"}), HasSubstr("above 0"));
  EXPECT_THAT(complaint({"--ranks", "1", "--frobnicate"}), HasSubstr("unknown option --frobnicate"));
  EXPECT_THAT(complaint({"--ranks"}), HasSubstr("needs a value"));
  EXPECT_THAT(complaint({"--ranks", "1", "--ranks", "2"}), HasSubstr("twice"));
  EXPECT_THAT(complaint({"--ranks", "1", "--sizes", "num_layers="}), HasSubstr("key=value"));
  EXPECT_THAT(complaint({"--ranks", "1", "--sizes", "num_layers=2,2"}), HasSubstr("twice"));
  EXPECT_THAT(complaint({"--ranks", "1", "--train.steeps", "2"}), HasSubstr("train.steps"));
}

TEST(ScaleSweep, GivesAllRanksToAnAxis) {
  const Sweep sweep = sweep_of({"--ranks", "1,2,4", "--axis", "all", "--train.micro_batch", "2"});
  EXPECT_EQ(sweep.points.size(), 12U);
  EXPECT_EQ(sweep.runs.size(), 9U) << "one rank is the same for all";
  for (const std::string axis : {"dp", "tp", "cp", "pp"}) {
    const ParallelConfig& p = run_of(sweep, "strong", axis, 4).config.parallel;
    EXPECT_EQ(axis == "dp" ? p.dp : axis == "tp" ? p.tp : axis == "cp" ? p.cp : p.pp, 4);
    EXPECT_EQ(p.dp * p.tp * p.cp * p.pp, 4);
  }
}

TEST(ScaleSweep, KeepsTheBatchOrTheBatchOfARank) {
  const Sweep sweep =
      sweep_of({"--ranks", "2,4", "--axis", "dp,cp", "--mode", "both", "--train.micro_batch", "2"});
  const auto shape = [&](const char* mode, const char* axis) {
    const TrainConfig& t = run_of(sweep, mode, axis, 4).config.train;
    return std::pair(t.global_batch, t.seq_len);
  };
  EXPECT_EQ(shape("strong", "dp"), std::pair(std::int64_t{8}, std::int64_t{256}));
  EXPECT_EQ(shape("weak", "dp"), std::pair(std::int64_t{16}, std::int64_t{256}))
      << "twice the 8 of two ranks";
  EXPECT_EQ(shape("weak", "cp"), std::pair(std::int64_t{8}, std::int64_t{512}));
}

TEST(ScaleSweep, SaysWhyARunIsNotPossible) {
  const Sweep sweep = sweep_of({"--ranks", "1,3", "--axis", "tp", "--mesh", "tp=2"});
  EXPECT_THAT(run_of(sweep, "strong", "tp", 3).impossible, HasSubstr("parallel.tp = 3 does not divide"));
  EXPECT_THAT(run_of(sweep, "strong", "tp=2", 3).impossible, HasSubstr("does not divide the 3 ranks"));
  const Sweep small = sweep_of({"--ranks", "1,2", "--memory", "0.0001"});
  EXPECT_THAT(small.runs[0].impossible, HasSubstr("[memory] planned to need"));
  const Sweep weak = sweep_of({"--ranks", "2,3", "--mode", "weak", "--train.global_batch", "2",
                               "--train.micro_batch", "1", "--train.seq_len", "255", "--axis", "cp"});
  EXPECT_THAT(run_of(weak, "weak", "cp", 3).impossible, HasSubstr("255 x 3 / 2 is no whole number"));
}

TEST(ScaleSweep, LeavesNoCheckpointsAndNoValidation) {
  const Sweep sweep = sweep_of({"--ranks", "1", "--checkpoint.path", "/somewhere", "--checkpoint.every", "1",
                                "--train.validate_every", "1"});
  const Config& c = sweep.runs[0].config;
  EXPECT_TRUE(c.checkpoint.path.empty());
  EXPECT_EQ(c.train.validate_every, 0);
  EXPECT_EQ(c.train.steps, 8);
  EXPECT_EQ(c.log.communication_skip, 3);
}

/// Two ranks are `speedup` times as fast as one, 0.5 s a step; the first three steps are slow and do not
/// count.
ScaleReport measured(double speedup, const Words& words = {"--ranks", "1,2,4"}) {
  ScaleReport report;
  report.sweep = sweep_of(words);
  report.launcher = {"mpirun", "-np", "{ranks}"};
  for (ScaleRun& run : report.sweep.runs) {
    if (!run.impossible.empty() || run.ranks > 2) continue;
    const double s = run.ranks == 1 ? 0.5 : 0.5 / speedup;
    run.rounds.push_back({{9, 9, 9, s, 1.1 * s, 0.9 * s, s, s}, 1e6, {{"data", 0.01}, {"world", 0.002}}});
  }
  return report;
}

TEST(ScaleSweep, EfficiencyIsWorkByRankAndTime) {
  EXPECT_DOUBLE_EQ(efficiency(8, 2, 1, 8, 2, 1), 1);
  EXPECT_DOUBLE_EQ(efficiency(8, 1.25, 2, 8, 2, 1), 0.8) << "strong: the same work 1.6 times as fast on two";
  EXPECT_DOUBLE_EQ(efficiency(16, 2.5, 2, 8, 2, 1), 0.8) << "weak: twice the work in 1.25 times the time";
  EXPECT_DOUBLE_EQ(efficiency(32, 2, 8, 8, 2, 2), 1) << "relative to two ranks";
  const Words possible{"--ranks", "1,2,4", "--train.micro_batch", "1"};
  const ScaleReport report = measured(1.6, possible);
  const Sweep& sweep = report.sweep;
  EXPECT_DOUBLE_EQ(sweep.runs[1].measured(3)->median, 0.5 / 1.6);
  EXPECT_DOUBLE_EQ(sweep.runs[1].measured(3)->most, 1.1 * 0.5 / 1.6);
  EXPECT_NEAR(*measured_efficiency(sweep, sweep.points[1]), 0.8, 1e-12);
  EXPECT_FALSE(measured_efficiency(sweep, sweep.points[2]).has_value()) << "not run yet";
  EXPECT_NEAR(*predicted_efficiency(sweep, sweep.points[2]),
              sweep.runs[0].predicted->step.total() / sweep.runs[2].predicted->step.total() / 4, 1e-12);
}

TEST(ScaleReport, GoesOnWithTheSameRunsAlone) {
  const Words words{"--ranks", "1,2,4", "--train.micro_batch", "1"};
  const Folder folder;
  save_report(folder.path(), measured(1.6, words));
  ScaleReport same = measured(1.6, words);
  for (ScaleRun& run : same.sweep.runs) run.rounds.clear();
  take_over_rounds(folder / "scale.json", same);
  ASSERT_EQ(same.sweep.runs[1].rounds.size(), 1U);
  EXPECT_EQ(same.sweep.runs[1].rounds[0].seconds, measured(1.6, words).sweep.runs[1].rounds[0].seconds);
  EXPECT_EQ(same.sweep.runs[1].rounds[0].exposed.at("world"), 0.002);
  EXPECT_TRUE(same.sweep.runs[2].rounds.empty());

  ScaleReport other = measured(1.6, {"--ranks", "1,2,4", "--train.micro_batch", "1", "--model.gate", "all"});
  for (ScaleRun& run : other.sweep.runs) run.rounds.clear();
  take_over_rounds(folder / "scale.json", other);
  for (const ScaleRun& run : other.sweep.runs)
    EXPECT_TRUE(run.rounds.empty()) << "another model, of the same name";

  spill(folder / "scale.json", "{\"version\": 1, \"runs\": [{");
  EXPECT_THAT(error_of([&] { take_over_rounds(folder / "scale.json", same); }),
              HasSubstr("an earlier `transmamba scale`"));
  EXPECT_THAT(error_of([&] { take_over_rounds(folder / "none.json", same); }),
              HasSubstr("none.json: cannot read"));
}

TEST(ScaleReport, ReadsAWholeRunAndNothingLess) {
  const Folder folder;
  Config c = sweep_of({"--ranks", "2", "--axis", "tp", "--steps", "2", "--warmup", "1"}).runs[0].config;
  c.log.metrics = folder / "m.jsonl", c.log.communication = folder / "c.json";
  const std::string step = "{\"step\": 1, \"tokens_per_second\": 4096, \"memory_bytes\": 7}\n";
  spill(folder / "m.jsonl", step + step + "{\"step\": 2, \"validation_loss\": 3}\n");
  spill(folder / "c.json", R"({"communication": [{"axis": "tp", "exposed_seconds_per_step": 0.25},
                               {"axis": "tp", "exposed_seconds_per_step": 0.5}]})");
  const Round round = read_round(c, 2);
  EXPECT_THAT(round.seconds, ElementsAre(0.5, 0.5)) << "2048 tokens at 4096 a second";
  EXPECT_EQ(round.memory_bytes, 7);
  EXPECT_EQ(round.exposed.at("tp"), 0.75);
  spill(folder / "m.jsonl", step);
  EXPECT_THAT(error_of([&] { read_round(c, 2); }), HasSubstr("expected 2 steps, got 1"));
}

TEST(ScaleCarryOn, GoesToAllOfACluster) {
  const Cluster cluster =
      Cluster::load(std::string(TRANSMAMBA_SOURCE_DIR) + "/configs/clusters/h200-ndr.json");
  const Config config = parse_config(std::string(TRANSMAMBA_SOURCE_DIR) + "/configs/transmamba-400m.cfg", {});
  const auto all = carry_on(cluster, {{"400m", config}}, {"strong", "weak"}, 1);
  ASSERT_EQ(all.size(), 26U);
  EXPECT_EQ(all[12].ranks, 4096);
  EXPECT_EQ(all[12].global_batch, 1024);
  EXPECT_EQ(all[25].global_batch, 1024 * 4096);
  EXPECT_LT(all[12].efficiency, all[25].efficiency) << "weak scaling is the easier";
  for (const CarriedOn& c : all) {
    EXPECT_EQ(c.impossible, "");
    EXPECT_EQ(c.mesh.tp * c.mesh.cp * c.mesh.dp * c.mesh.pp, c.ranks);
    EXPECT_TRUE(c.efficiency > 0 && c.efficiency < 1.01) << c.ranks;  // shared optimizer state saves a little
    EXPECT_TRUE(c.mfu > 0.05 && c.mfu < 1) << c.ranks;
  }
}

TEST(ScaleCommand, WantsAFolderAndALauncher) {
  Process process;
  const Folder folder;
  spill(folder / "file", "");
  const auto error = [&](Words words) {
    words.insert(words.begin(), {tiny(), "--ranks", "1"});
    return error_of([&] { scale(process, words); });
  };
  EXPECT_THAT(error({"--output", (folder / "file").string() + "/x"}), HasSubstr("--output: cannot write"));
  EXPECT_THAT(error({"--output", folder.path().string(), "--launcher", "no-such-mpirun {ranks}"}),
              HasSubstr("no-such-mpirun"));
  EXPECT_THAT(error({"--cluster", "/nowhere.json"}), HasSubstr("/nowhere.json"));
}

}  // namespace
}  // namespace transmamba
