#include "core/cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/core/files.h"

namespace transmamba {
namespace {

using ::testing::AllOf;
using testing::error_of;
using testing::Folder;
using ::testing::HasSubstr;
using testing::slurp;
using testing::spill;

std::filesystem::path shipped(const std::string& name) {
  return std::string(TRANSMAMBA_SOURCE_DIR) + "/configs/clusters/" + name;
}

TEST(Cluster, ReadsThoseThatAreShipped) {
  int count = 0;
  for (const auto& file : std::filesystem::directory_iterator(shipped(""))) {
    const Cluster cluster = Cluster::load(file.path());
    EXPECT_GT(cluster.ranks(), cluster.machine.ranks_per_host) << file.path();
    EXPECT_GE(cluster.sources.size(), 3U) << "each number says where it is from";
    EXPECT_GT(cluster.machine.between_hosts.send.byte, cluster.machine.within_host.send.byte);
    ++count;
  }
  EXPECT_GE(count, 3);
}

TEST(Cluster, SaysWhatItsDevicesAndLinksAreLike) {
  const Cluster h200 = Cluster::load(shipped("h200-ndr.json")),
                h100 = Cluster::load(shipped("h100-ndr.json"));
  EXPECT_EQ(h200.ranks(), 4096);
  EXPECT_DOUBLE_EQ(h200.machine.gemm_flop, Machine::builtin_h200().gemm_flop);
  EXPECT_DOUBLE_EQ(h200.machine.between_hosts.all_gather.byte, 1 / 45e9);
  EXPECT_DOUBLE_EQ(h200.machine.between_hosts.all_gather.latency, 15e-6);
  EXPECT_DOUBLE_EQ(h100.machine.gemm_flop, h200.machine.gemm_flop) << "the same matrix units";
  EXPECT_DOUBLE_EQ(h100.machine.norm.forward * 0.7, h200.machine.norm.forward) << "slower memory";
  EXPECT_DOUBLE_EQ(h100.memory_bytes, 72.0 * (1 << 30));
}

TEST(Cluster, TakesAMachineFileBesideIt) {
  const Folder folder;
  Machine machine = Machine::builtin_h200();
  machine.gemm_flop = 1e-15;
  machine.save(folder / "measured.json");
  std::string text = slurp(shipped("h200-ndr.json"));
  text.replace(text.find("\"h200\""), 6, "\"measured.json\"");
  spill(folder / "c.json", text);
  EXPECT_DOUBLE_EQ(Cluster::load(folder / "c.json").machine.gemm_flop, 1e-15);
}

TEST(Cluster, SaysWhatIsWrong) {
  const Folder folder;
  const auto complaint = [&](const std::string& what, const std::string& with) {
    std::string text = slurp(shipped("h200-ndr.json"));
    EXPECT_NE(text.find(what), std::string::npos) << what;
    text.replace(text.find(what), what.size(), with);
    spill(folder / "c.json", text);
    return error_of([&] { Cluster::load(folder / "c.json"); });
  };
  EXPECT_THAT(complaint("\"hosts\": 512", "\"hosts\": 0"),
              AllOf(HasSubstr("c.json"), HasSubstr("hosts: expected")));
  EXPECT_THAT(complaint("\"send_gb_s\": 359", "\"send_gb_s\": 0"),
              HasSubstr("within_host.send_gb_s: expected a number above 0"));
  EXPECT_THAT(complaint("peak_tflops", "peak"),
              HasSubstr("peak_tflops is missing; configs/clusters has examples"));
  EXPECT_THAT(complaint("\"h200\"", "\"none.json\""), HasSubstr("none.json"));
  EXPECT_THAT(complaint("\"sources\": [", "\"sources\": [3, "), HasSubstr("sources: expected texts, got 3"));
  EXPECT_THAT(complaint("{", "["), HasSubstr("expected a JSON object"));
  EXPECT_THAT(error_of([&] { Cluster::load(folder / "none"); }), HasSubstr("cannot read"));
}

}  // namespace
}  // namespace transmamba
