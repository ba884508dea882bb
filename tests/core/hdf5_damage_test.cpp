// What an HDF5 file does when it, or the disk below it, is broken.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <numeric>

#include "core/hdf5_file.h"
#include "tests/core/files.h"

namespace transmamba {
namespace {

using ::testing::AllOf;
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

TEST(Hdf5File, SaysWhatIsWrongWithAFile) {
  const Folder folder;
  const auto opening = [&](const std::string& name) {
    return error_of([&] { Hdf5File::open(folder / name); });
  };
  EXPECT_THAT(opening("absent.h5"), AllOf(HasSubstr("absent.h5"), HasSubstr("no such file")));
  EXPECT_THAT(error_of([&] { Hdf5File::open(folder.path()); }), HasSubstr("folder"));
  spill(folder / "empty.h5", "");
  EXPECT_THAT(opening("empty.h5"), HasSubstr("truncated"));
  spill(folder / "foreign.h5", "some other text, long enough to be looked at");
  EXPECT_THAT(opening("foreign.h5"), HasSubstr("not an HDF5 file"));
  {
    Hdf5File file = Hdf5File::create(folder / "whole.h5");
    file.write("x", counted<float>(1000));
    file.close();
  }
  const std::string whole = slurp(folder / "whole.h5");
  for (const std::size_t size : {whole.size() - 1, whole.size() / 2, std::size_t{100}, std::size_t{20}}) {
    spill(folder / "cut.h5", whole.substr(0, size));
    EXPECT_THAT(opening("cut.h5"), HasSubstr("truncated")) << size;
  }
  EXPECT_THAT(error_of([&] { Hdf5File::create(folder / "no/such/folder.h5"); }),
              AllOf(HasSubstr("folder.h5"), HasSubstr("No such file or directory")));
  EXPECT_THAT(error_of([&] { Hdf5File::open(folder / "whole.h5").write("y", counted<float>(1)); }),
              HasSubstr("reading only"));
}

TEST(Hdf5File, NamesTheSourceOfAVirtualDatasetThatIsAnother) {
  const Folder folder;
  const auto write = [&](const std::string& name, const std::string& dataset, std::int64_t count) {
    Hdf5File file = Hdf5File::create(folder / name);
    file.write(dataset, counted<float>(count));
    file.close();
  };
  write("a.h5", "w", 100), write("b.h5", "w", 100);
  {
    Hdf5File index = Hdf5File::create(folder / "index.h5");
    index.write_virtual("w", {200}, DType::f32, {{"a.h5", "w", {0}, {100}}, {"b.h5", "w", {100}, {100}}});
    index.close();
  }
  std::vector<float> out(50);
  const View view(reinterpret_cast<std::byte*>(out.data()), DType::f32, {50});
  const auto reading = [&](std::int64_t from) {
    return error_of([&] { Hdf5File::open(folder / "index.h5").read("w", {from}, view); });
  };
  std::string bytes = slurp(folder / "b.h5");
  bytes[bytes.find(std::string("\0\0\x80\x3f\0\0\0\x40", 8))] = 1;  // of its first two numbers, 1 and 2
  spill(folder / "b.h5", bytes);
  EXPECT_THAT(reading(80), AllOf(HasSubstr("b.h5"), HasSubstr("w: cannot be read")));
  Hdf5File::open(folder / "index.h5").read("w", {50}, view);  // needs the other only
  EXPECT_EQ(out.front(), 51);
  write("b.h5", "w", 101);
  EXPECT_THAT(reading(80), AllOf(HasSubstr("b.h5"), HasSubstr("another shape")));
  write("b.h5", "x", 100);
  EXPECT_THAT(reading(80), AllOf(HasSubstr("b.h5"), HasSubstr("no dataset w")));
  std::filesystem::remove(folder / "b.h5");
  EXPECT_THAT(reading(80), AllOf(HasSubstr("b.h5"), HasSubstr("no such file")));
}

TEST(Hdf5File, NoticesAnyFlippedByte) {
  const Folder folder;
  const auto values = counted<float>(100);
  {
    Hdf5File file = Hdf5File::create(folder / "a.h5");
    file.write("group/values", values);
    file.write_scalar("step", std::int64_t{12345});
    file.set_attribute("config", "hidden_size = 256");
    file.close();
  }
  const auto same = [&] {
    const Hdf5File file = Hdf5File::open(folder / "a.h5");
    return file.datasets() == std::vector<std::string>{"group/values", "step"} &&
           file.read_vector<float>("group/values") == values &&
           file.read_scalar<std::int64_t>("step") == 12345 &&
           file.attribute<std::string>("config") == "hidden_size = 256";
  };
  ASSERT_TRUE(same());
  const std::string whole = slurp(folder / "a.h5");
  std::fstream bytes(folder / "a.h5", std::ios::in | std::ios::out | std::ios::binary);
  const auto put = [&](std::size_t at, char byte) {
    bytes.seekp(static_cast<std::streamoff>(at));
    bytes.put(byte);
    bytes.flush();
  };
  int noticed = 0, tried = 0;
  for (std::size_t at = 0; at < whole.size(); ++at, ++tried) {
    put(at, static_cast<char>(whole[at] ^ 0x10));
    try {
      EXPECT_TRUE(same()) << "a flip at byte " << at << " changed the data";  // unused bytes may flip
    } catch (const Error&) {
      ++noticed;
    }
    put(at, whole[at]);
  }
  EXPECT_GT(noticed, tried / 8);
}

// Runs in a child: the limit would stay with the process.
[[noreturn]] void write_past_the_limit(const std::filesystem::path& folder, std::int64_t limit, bool close) {
  std::signal(SIGXFSZ, SIG_IGN);
  const rlimit size{static_cast<rlim_t>(limit), static_cast<rlim_t>(limit)};
  ::setrlimit(RLIMIT_FSIZE, &size);
  int errors = 0;
  try {
    Hdf5File file = Hdf5File::create(folder / "full.h5");
    file.create_appendable<std::uint32_t>("stream");
    for (int i = 0; i < 20; ++i) {
      file.write("group/values" + std::to_string(i), counted<float>(50'000));
      file.append<std::uint32_t>("stream", counted<std::uint32_t>(30'000));
      file.set_attribute(fmt::format("a{}", i), std::string(1000, 'x'));
    }
    if (close) file.close();
  } catch (const Error& error) {
    if (std::string(error.what()).find("File too large") != std::string::npos) ++errors;
  }
  // The library must still work.
  Hdf5File small = Hdf5File::create(folder / "small.h5");
  small.write_scalar("x", 1.0);
  small.close();
  if (Hdf5File::open(folder / "small.h5").read_scalar<double>("x") != 1.0) errors = 9;
  std::exit(errors);  // not _exit: HDF5's own exit handler runs, which is where it used to hang
}

TEST(Hdf5FileDeathTest, ADiskThatFillsUpIsOneErrorAndAnOrderlyExit) {
  const Folder folder;
  for (const std::int64_t limit : {3'000, 20'000, 200'000, 250'001, 1'000'000, 4'000'000})
    for (const bool close : {true, false})
      EXPECT_EXIT(write_past_the_limit(folder.path(), limit, close), ::testing::ExitedWithCode(1), "")
          << limit;
}

TEST(Hdf5FileDeathTest, AFileWhoseFlushFailsOnlyAtCloseSaysSo) {
  const Folder folder;
  const auto run = [&] {
    std::signal(SIGXFSZ, SIG_IGN);
    Hdf5File file = Hdf5File::create(folder / "late.h5");
    file.write("x", counted<float>(1000));
    const rlimit size{64, 64};
    ::setrlimit(RLIMIT_FSIZE, &size);
    try {
      file.close();
    } catch (const Error&) {
      file.close();  // does nothing
      std::exit(3);
    }
    std::exit(0);
  };
  EXPECT_EXIT(run(), ::testing::ExitedWithCode(3), "");
}

TEST(Hdf5FileDeathTest, AFileThatWasNeverClosedIsNotTakenForAWholeOne) {
  const Folder folder;
  const auto run = [&] {
    Hdf5File file = Hdf5File::create(folder / "killed.h5");
    file.write("x", counted<float>(1'000'000));
    ::_exit(0);
  };
  EXPECT_EXIT(run(), ::testing::ExitedWithCode(0), "");
  EXPECT_THAT(error_of([&] { Hdf5File::open(folder / "killed.h5"); }), HasSubstr("killed.h5"));
}

}  // namespace
}  // namespace transmamba
