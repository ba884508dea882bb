#include "core/hdf5_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <numeric>
#include <thread>

#include "tests/core/files.h"

namespace transmamba {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::error_of;
using testing::Folder;
using ::testing::HasSubstr;
using testing::slurp;
using testing::spill;

template <class T>
std::vector<T> counted(std::int64_t n) {
  std::vector<T> out(static_cast<std::size_t>(n));
  std::iota(out.begin(), out.end(), T{1});
  return out;
}

template <class T>
View view(std::vector<T>& data, const Shape& shape) {
  return View(reinterpret_cast<std::byte*>(data.data()), dtype_of<T>(), shape);
}

TEST(Hdf5File, GivesBackWhatWasWritten) {
  const Folder folder;
  auto values = counted<float>(24);
  auto ids = counted<std::int32_t>(6);
  {
    Hdf5File file = Hdf5File::create(folder / "a.h5");
    file.write("model/weight", view(values, {2, 3, 4}));
    file.write("ids", view(ids, {6}));
    file.write("list", std::vector<std::int64_t>{1, -2, std::int64_t{1} << 60});
    file.write_scalar("step", std::int64_t{7});
    file.write("nothing", std::vector<double>{});
    file.create_group("empty/group");
    file.close();
  }
  const Hdf5File file = Hdf5File::open(folder / "a.h5");
  EXPECT_THAT(file.datasets(), ElementsAre("ids", "list", "model/weight", "nothing", "step"));
  EXPECT_THAT(file.datasets("model"), ElementsAre("model/weight"));
  EXPECT_TRUE(file.has("empty/group"));
  EXPECT_FALSE(file.has("empty/group/deeper/still"));
  EXPECT_THAT(file.shape("model/weight"), ElementsAre(2, 3, 4));
  EXPECT_THAT(file.shape("nothing"), ElementsAre(0));
  EXPECT_TRUE(file.shape("step").empty());
  EXPECT_EQ(file.element_type("list"), "int64");
  EXPECT_EQ(file.read_vector<float>("model/weight"), values);
  EXPECT_EQ(file.read_vector<std::int32_t>("ids"), ids);
  EXPECT_THAT(file.read_vector<std::int64_t>("list"), ElementsAre(1, -2, std::int64_t{1} << 60));
  EXPECT_EQ(file.read_scalar<std::int64_t>("step"), 7);
  EXPECT_TRUE(file.read_vector<double>("nothing").empty());
}

TEST(Hdf5File, ConvertsNumberTypesAndRefusesWhatWouldLoseThem) {
  const Folder folder;
  Hdf5File file = Hdf5File::create(folder / "a.h5");
  file.write("double", std::vector<double>{0.5, 1.5});
  file.write("long", std::vector<std::int64_t>{3, std::int64_t{1} << 40});
  std::vector<float> floats(2);
  std::vector<std::int32_t> ints(2);
  file.read("double", view(floats, {2}));
  EXPECT_THAT(floats, ElementsAre(0.5F, 1.5F));
  file.read("long", view(floats, {2}));
  EXPECT_EQ(floats[1], std::ldexp(1.0F, 40));
  EXPECT_THAT(error_of([&] { file.read("double", view(ints, {2})); }),
              AllOf(HasSubstr("expected int32"), HasSubstr("got float64")));
  EXPECT_THAT(error_of([&] { file.read("long", view(ints, {2})); }), HasSubstr("a.h5: long"));
}

TEST(Hdf5File, ReadsAndWritesStridedViewsAndBlocks) {
  const Folder folder;
  auto values = counted<double>(6 * 5);
  Hdf5File file = Hdf5File::create(folder / "a.h5");
  file.write("columns", ConstView(view(values, {6, 5})).slice(1, 1, 4));
  EXPECT_THAT(file.shape("columns"), ElementsAre(6, 3));
  std::vector<double> padded(4 * 10, -1.0);
  file.read("columns", {1, 1}, view(padded, {4, 10}).slice(1, 3, 5));
  EXPECT_EQ(padded[3], values[1 * 5 + 2]);
  EXPECT_EQ(padded[3 * 10 + 4], values[4 * 5 + 3]);
  EXPECT_EQ(padded[2], -1.0);
  EXPECT_EQ(padded[5], -1.0);
  std::vector<double> run(3);
  file.write("flat", values);
  file.read<double>("flat", 27, run);
  EXPECT_THAT(run, ElementsAre(28, 29, 30));
  EXPECT_THAT(error_of([&] {
                file.read("columns", {4, 1}, view(padded, {4, 2}));
              }),
              AllOf(HasSubstr("(6, 3)"), HasSubstr("(4, 1)"), HasSubstr("(4, 2)")));
  EXPECT_THAT(error_of([&] {
                file.read("columns", view(padded, {5, 3}));
              }),
              AllOf(HasSubstr("expected shape (5, 3)"), HasSubstr("(6, 3)")));
  EXPECT_THAT(error_of([&] { file.read_vector<float>("columm"); }), HasSubstr("columm: no such dataset"));
}

TEST(Hdf5File, CutsLargeDatasetsInChunks) {
  const Folder folder;
  auto values = counted<float>(3 * 1001 * 701);
  {
    Hdf5File file = Hdf5File::create(folder / "a.h5");
    file.write("w", view(values, {3, 1001, 701}));
    file.close();
  }
  EXPECT_LT(std::filesystem::file_size(folder / "a.h5"), values.size() * 4 * 102 / 100);
  std::vector<float> block(2 * 10 * 7);
  const Hdf5File file = Hdf5File::open(folder / "a.h5");
  file.read("w", {1, 500, 300}, view(block, {2, 10, 7}));
  EXPECT_EQ(block[0], values[(1 * 1001 + 500) * 701 + 300]);
  EXPECT_EQ(file.read_vector<float>("w"), values);
}

TEST(Hdf5File, KeepsAttributesOfEveryKind) {
  const Folder folder;
  const std::string large(200'000, 'x');
  {
    Hdf5File file = Hdf5File::create(folder / "a.h5");
    file.write_scalar("group/x", 1.0F);
    file.set_attribute("int", std::int64_t{1} << 50);
    file.set_attribute("double", 0.1);
    file.set_attribute("yes", true);
    file.set_attribute("no", false);
    file.set_attribute("text", "naïve ✓");
    file.set_attribute("none", "");
    file.set_attribute("large", large);
    file.set_attribute("unit", "token", "group/x");
    file.set_attribute("unit", 3, "group/x");
    file.close();
  }
  const Hdf5File file = Hdf5File::open(folder / "a.h5");
  EXPECT_THAT(file.attributes(), ElementsAre("double", "int", "large", "no", "none", "text", "yes"));
  EXPECT_EQ(file.attribute<std::int64_t>("int"), std::int64_t{1} << 50);
  EXPECT_EQ(file.attribute<double>("double"), 0.1);
  EXPECT_EQ(file.attribute<double>("int"), std::ldexp(1.0, 50));
  EXPECT_TRUE(file.attribute<bool>("yes"));
  EXPECT_FALSE(file.attribute<bool>("no"));
  EXPECT_EQ(file.attribute<std::string>("text"), "naïve ✓");
  EXPECT_EQ(file.attribute<std::string>("none"), "");
  EXPECT_EQ(file.attribute<std::string>("large"), large);
  EXPECT_EQ(file.attribute<std::int64_t>("unit", "group/x"), 3);
  EXPECT_FALSE(file.has_attribute("unit"));
  EXPECT_THAT(error_of([&] { file.attribute("unit", "group"); }), HasSubstr("group@unit: no such attribute"));
  EXPECT_THAT(error_of([&] { file.attribute<std::int64_t>("double"); }),
              AllOf(HasSubstr("an integer"), HasSubstr("a number")));
}

TEST(Hdf5File, StreamsByAppending) {
  const Folder folder;
  std::vector<std::uint16_t> all;
  {
    Hdf5File file = Hdf5File::create(folder / "a.h5");
    file.create_appendable<std::uint16_t>("tokens");
    file.create_appendable<std::int64_t>("offsets");
    for (std::size_t n : {0, 1, 1000, 65536, 200'000, 5}) {
      std::vector<std::uint16_t> part(n);
      for (auto& token : part) token = static_cast<std::uint16_t>(all.size() * 31), all.push_back(token);
      file.append<std::uint16_t>("tokens", part);
    }
    EXPECT_THAT(error_of([&] { file.append<std::int64_t>("tokens", std::vector<std::int64_t>{1}); }),
                AllOf(HasSubstr("uint16"), HasSubstr("int64")));
    file.close();
  }
  const Hdf5File file = Hdf5File::open(folder / "a.h5");
  EXPECT_EQ(file.read_vector<std::uint16_t>("tokens"), all);
  EXPECT_THAT(file.shape("offsets"), ElementsAre(0));
}

TEST(Hdf5File, WritesAndReadsWhatHoldsNothing) {
  const Folder folder;
  std::vector<float> values(12);
  {
    Hdf5File file = Hdf5File::create(folder / "a.h5");
    file.write("rows", View(nullptr, DType::f32, {0, 6}));
    file.write("columns", view(values, {3, 4}).slice(1, 2, 2));
    file.write("all", view(values, {3, 4}));
    file.close();
  }
  const Hdf5File file = Hdf5File::open(folder / "a.h5");
  EXPECT_THAT(file.shape("rows"), ElementsAre(0, 6));
  EXPECT_THAT(file.shape("columns"), ElementsAre(3, 0));
  file.read("rows", View(nullptr, DType::f32, {0, 6}));
  file.read("columns", view(values, {3, 0}));
  file.read("all", {3, 0}, View(nullptr, DType::f32, {0, 4}));
  EXPECT_THAT(error_of([&] {
                file.read("all", {4, 0}, View(nullptr, DType::f32, {0, 4}));
              }),
              HasSubstr("inside shape"));
}

TEST(Hdf5File, VirtualDatasetsMayHavePiecesThatAreNothing) {
  const Folder folder;
  auto values = counted<float>(6);
  {
    Hdf5File file = Hdf5File::create(folder / "shard.h5");
    file.write("w", view(values, {6}));
    file.close();
    Hdf5File index = Hdf5File::create(folder / "index.h5");
    index.write_virtual("w", {6}, DType::f32,
                        {{"none", "w", {3}, {0}}, {"shard.h5", "w", {0}, {6}}, {"none", "w", {6}, {0}}});
    index.write_virtual("nothing", {0}, DType::f32, {{"none", "w", {0}, {0}}});
    index.close();
  }
  const Hdf5File index = Hdf5File::open(folder / "index.h5");
  EXPECT_EQ(index.read_vector<float>("w"), values);
  EXPECT_TRUE(index.read_vector<float>("nothing").empty());
}

TEST(Hdf5File, VirtualDatasetsShowOtherFilesFromAnyFolder) {
  const Folder folder;
  std::filesystem::create_directories(folder / "step-1/50%b");
  auto top = counted<float>(6), bottom = counted<float>(9);
  for (auto& x : bottom) x += 100;
  {
    Hdf5File a = Hdf5File::create(folder / "step-1/50%b/shard-0.h5"),
             b = Hdf5File::create(folder / "step-1/shard-1.h5");
    a.write("model/w", view(top, {2, 3}));
    b.write("model/w", view(bottom, {3, 3}));
    a.close(), b.close();
    Hdf5File index = Hdf5File::create(folder / "step-1/index.h5");
    index.write_virtual(
        "model/w", {5, 3}, DType::f32,
        {{"50%b/shard-0.h5", "model/w", {0, 0}, {2, 3}}, {"shard-1.h5", "model/w", {2, 0}, {3, 3}}});
    EXPECT_THAT(error_of([&] {
                  index.write_virtual("x", {5, 3}, DType::f32,
                                      {{"a", "w", {0, 0}, {2, 3}}, {"b", "w", {1, 0}, {3, 3}}});
                }),
                HasSubstr("overlap"));
    EXPECT_THAT(error_of([&] {
                  index.write_virtual("x", {5, 3}, DType::f32, {{"a", "w", {0, 0}, {2, 3}}});
                }),
                AllOf(HasSubstr("15"), HasSubstr("6")));
    index.close();
  }
  top.insert(top.end(), bottom.begin(), bottom.end());
  const auto elsewhere = std::filesystem::current_path();
  ASSERT_EQ(Hdf5File::open(folder / "step-1/index.h5").read_vector<float>("model/w"), top);
  std::filesystem::current_path(folder.path());
  EXPECT_EQ(Hdf5File::open("step-1/index.h5").read_vector<float>("model/w"), top);
  std::filesystem::current_path(folder / "step-1");
  EXPECT_EQ(Hdf5File::open("index.h5").read_vector<float>("model/w"), top);
  std::filesystem::current_path(elsewhere);
  std::filesystem::rename(folder / "step-1", folder / "moved");
  {
    const Hdf5File index = Hdf5File::open(folder / "moved/index.h5");
    std::vector<float> block(2);
    index.read("model/w", {1, 2}, view(block, {2, 1}));
    EXPECT_THAT(block, ElementsAre(6, 103));
  }
  const std::string shard = slurp(folder / "moved/shard-1.h5");
  const auto reading = [&] {
    return error_of([&] { Hdf5File::open(folder / "moved/index.h5").read_vector<float>("model/w"); });
  };
  spill(folder / "moved/shard-1.h5", shard.substr(0, shard.size() / 2));
  EXPECT_THAT(reading(), AllOf(HasSubstr("index.h5"), HasSubstr("shard-1.h5"), HasSubstr("truncated")));
  std::filesystem::remove(folder / "moved/shard-1.h5");
  EXPECT_THAT(reading(), AllOf(HasSubstr("index.h5"), HasSubstr("shard-1.h5"), HasSubstr("no such file")));
}

TEST(Hdf5File, ThreadsMayEachWriteAFile) {
  const Folder folder;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 5; ++i) {
        const auto path = folder / (std::to_string(t) + ".h5");
        Hdf5File file = Hdf5File::create(path);
        file.write("x", std::vector<double>{1.0 * t, 1.0 * i});
        file.close();
        EXPECT_THAT(Hdf5File::open(path).read_vector<double>("x"), ElementsAre(t, i));
      }
    });
  for (auto& thread : threads) thread.join();
}

TEST(Hdf5File, LetsOthersReadWhileItWritesSomethingLong) {
  const Folder folder;
  auto numbers = counted<float>(1000);
  {
    Hdf5File small = Hdf5File::create(folder / "small.h5");
    small.write("x", view(numbers, {1000}));
    small.close();
  }
  const Hdf5File small = Hdf5File::open(folder / "small.h5");
  std::vector<float> big(std::size_t{64} << 18);  // 64 chunks, one write
  std::atomic<bool> begun = false, done = false;
  std::thread writer([&] {
    Hdf5File file = Hdf5File::create(folder / "big.h5");
    begun = true;
    file.write("x", view(big, {64, 1 << 18}));
    done = true;
    file.close();
  });
  while (!begun) std::this_thread::yield();
  int reads = 0;
  for (; !done; ++reads) {
    small.read("x", view(numbers, {1000}));
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  writer.join();
  EXPECT_GE(reads, 10) << "with the lock held throughout it is two at most";
}

bool h5py_is_here() { return std::system("/usr/bin/python3 -c 'import h5py' 2>/dev/null") == 0; }

TEST(Hdf5File, ShowsH5pyItsAttributesAndVirtualDatasetsFromAnyFolder) {
  ASSERT_TRUE(h5py_is_here()) << "tools/setup --for test installs python3-h5py";
  const Folder folder;
  {
    Hdf5File shard = Hdf5File::create(folder / "shard-0.h5");
    shard.write("w", std::vector<float>{1, 2, 3});
    shard.close();
    Hdf5File index = Hdf5File::create(folder / "index.h5");
    index.write_virtual("w", {5}, DType::f32, {{"shard-0.h5", "w", {0}, {3}}, {"lost.h5", "w", {3}, {2}}});
    index.set_attribute("tied", true);
    index.set_attribute("steps", 7);
    index.set_attribute("theta", 0.5);
    index.set_attribute("name", "V9 \xE2\x9C\x93");
    index.close();
  }
  spill(folder / "look.py",
        "import h5py, numpy as np, os, sys\n"
        "os.chdir('/')\n"
        "f = h5py.File(sys.argv[1], 'r')\n"
        "w, a = f['w'][:], f.attrs\n"
        "assert (w[:3] == [1, 2, 3]).all() and np.isnan(w[3:]).all(), w\n"
        "assert a['tied'] is np.True_ or a['tied'] == True and a['tied'].dtype == bool, repr(a['tied'])\n"
        "assert a['steps'] == 7 and a['theta'] == 0.5, dict(a)\n"
        "assert bytes(a['name']).decode() == 'V9 ✓', repr(a['name'])\n");
  EXPECT_EQ(
      std::system(("/usr/bin/python3 " + (folder / "look.py").string() + " " + (folder / "index.h5").string())
                      .c_str()),
      0);
}

TEST(Hdf5File, ReadsWhatH5pyWrites) {
  ASSERT_TRUE(h5py_is_here()) << "tools/setup --for test installs python3-h5py";
  const Folder folder;
  const std::string path = (folder / "py.h5").string();
  spill(folder / "make.py",
        "import h5py, numpy as np, sys\n"
        "f = h5py.File(sys.argv[1], 'w')\n"
        "f.attrs.update(dict(heads=4, theta=1e4, tied=True, name='V9 ✓', step=np.int32(3)))\n"
        "f['a/b'] = np.arange(6, dtype=np.int64).reshape(2, 3)\n"
        "f['c'] = np.float64(2.5)\n"
        "f.close()\n");
  ASSERT_EQ(std::system(("/usr/bin/python3 " + (folder / "make.py").string() + " " + path).c_str()), 0);
  const Hdf5File file = Hdf5File::open(path);
  EXPECT_EQ(file.attribute<std::int64_t>("heads"), 4);
  EXPECT_EQ(file.attribute<std::int64_t>("step"), 3);
  EXPECT_EQ(file.attribute<double>("theta"), 1e4);
  EXPECT_TRUE(file.attribute<bool>("tied"));
  EXPECT_EQ(file.attribute<std::string>("name"), "V9 ✓");
  EXPECT_EQ(file.read_scalar<double>("c"), 2.5);
  std::vector<std::int32_t> ids(6);
  file.read("a/b", view(ids, {2, 3}));
  EXPECT_THAT(ids, ElementsAre(0, 1, 2, 3, 4, 5));
}

}  // namespace
}  // namespace transmamba
