#include "core/tokens.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
#include <set>

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

using Ids = std::vector<std::int32_t>;

Ids read(const TokenDataset& data, std::int64_t begin, std::int64_t count) {
  Ids out(static_cast<std::size_t>(count), -7);
  data.read(begin, out);
  return out;
}

std::string opening(const std::filesystem::path& path, Split split = Split::train) {
  return error_of([&] { TokenDataset::open(path, split); });
}

// ---- tokens.h5

TEST(TokenFile, KeepsDocumentsTokenizerAndValidation) {
  const Folder folder;
  const auto tokenizer = make_tokenizer("bytes");
  {
    TokenWriter writer(folder / "t.h5", *tokenizer);
    writer.append(Split::train, tokenizer->encode("he"));
    writer.append(Split::train, tokenizer->encode("llo"));
    writer.end_document(Split::train);
    writer.end_document(Split::train);  // an empty document is none
    writer.append(Split::train, tokenizer->encode("you"));
    writer.append(Split::validation, tokenizer->encode("!?"));
    EXPECT_THAT(error_of([&] { writer.append(Split::train, Ids{1, 257}); }), HasSubstr("257"));
    writer.close();
  }
  const auto data = TokenDataset::open(folder / "t.h5");
  EXPECT_EQ(data->size(), 10);
  EXPECT_EQ(data->num_documents(), 2);
  EXPECT_EQ(data->vocab_size(), 257);
  EXPECT_EQ(data->end_of_document(), 256);
  EXPECT_EQ(data->tokenizer(), "bytes");
  EXPECT_TRUE(data->has_validation());
  EXPECT_THAT(read(*data, 3, 5), ElementsAre('l', 'o', 256, 'y', 'o'));
  const auto validation = TokenDataset::open(folder / "t.h5", Split::validation);
  EXPECT_THAT(read(*validation, 0, 3), ElementsAre('!', '?', 256));
  EXPECT_THAT(error_of([&] { read(*data, 8, 3); }),
              AllOf(HasSubstr("t.h5"), HasSubstr("10"), HasSubstr("[8, 11)")));
  const Hdf5File raw = Hdf5File::open(folder / "t.h5");
  EXPECT_EQ(raw.element_type("tokens"), "uint16");
  EXPECT_THAT(raw.read_vector<std::int64_t>("document_offsets"), ElementsAre(0, 6, 10));
}

TEST(TokenFile, HoldsLargeVocabulariesAndRefusesIdsPastThem) {
  struct Large final : Tokenizer {
    std::string name() const override { return "bytes"; }
    std::int32_t vocab_size() const override { return 70'000; }
    std::int32_t end_of_document() const override { return 69'999; }
    std::vector<std::int32_t> encode(std::string_view) const override { return {}; }
    std::string decode(std::span<const std::int32_t>) const override { return ""; }
  };
  const Folder folder;
  {
    TokenWriter writer(folder / "t.h5", Large());
    writer.append(Split::train, Ids{1, 66'000, 2});
    writer.close();
  }
  const auto data = TokenDataset::open(folder / "t.h5");
  EXPECT_THAT(read(*data, 0, 4), ElementsAre(1, 66'000, 2, 69'999));
  data->limit_vocab(66'001);
  EXPECT_THAT(error_of([&] { read(*data, 0, 4); }),
              AllOf(HasSubstr("token 3"), HasSubstr("66001"), HasSubstr("69999")));
}

TEST(TokenFile, SaysWhatIsWrong) {
  const Folder folder;
  EXPECT_THAT(opening(folder / "absent.h5"), HasSubstr("no such file"));
  spill(folder / "text.h5", "words and more words");
  EXPECT_THAT(opening(folder / "text.h5"), HasSubstr("not an HDF5 file"));
  // Each broken in one way.
  struct Parts {
    std::vector<std::uint16_t> tokens{1, 2, 3, 9};
    std::vector<std::int64_t> offsets{0, 2, 4};
    std::int64_t format = 1, vocab = 10, end = 9;
  };
  const auto broken = [&](const std::function<void(Parts&)>& change) {
    Parts parts;
    change(parts);
    Hdf5File file = Hdf5File::create(folder / "t.h5");
    file.write("tokens", parts.tokens);
    file.write("document_offsets", parts.offsets);
    file.set_attribute("format_version", parts.format);
    file.set_attribute("tokenizer", "bytes");
    file.set_attribute("vocab_size", parts.vocab);
    file.set_attribute("end_of_document", parts.end);
    file.close();
    return error_of([&] { read(*TokenDataset::open(folder / "t.h5"), 0, 4); });
  };
  EXPECT_THAT(broken([](Parts& p) { p.format = 2; }), HasSubstr("expected format version 1, got 2"));
  EXPECT_THAT(broken([](Parts& p) { p.tokens.clear(); }), HasSubstr("no tokens"));
  EXPECT_THAT(broken([](Parts& p) { p.offsets = {0, 3, 2, 4}; }), HasSubstr("2 after 3"));
  EXPECT_THAT(broken([](Parts& p) { p.offsets = {0, 5}; }), HasSubstr("got 5"));
  EXPECT_THAT(broken([](Parts& p) { p.offsets = {1, 4}; }), HasSubstr("begin with 0"));
  EXPECT_THAT(broken([](Parts& p) { p.end = 10; }), HasSubstr("end_of_document"));
  EXPECT_THAT(broken([](Parts& p) { p.tokens[1] = 10; }), AllOf(HasSubstr("token 1"), HasSubstr("got 10")));
  Hdf5File other = Hdf5File::create(folder / "other.h5");
  other.write("model/weight", std::vector<float>{1});
  other.close();
  EXPECT_THAT(opening(folder / "other.h5"), HasSubstr("not a token file"));
}

// ---- Megatron

template <class T>
std::string raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

template <class T>
std::string raw(T value) {
  return raw(std::vector<T>{value});
}

struct Megatron {
  std::string magic = std::string("MMIDIDX\0\0", 9);
  std::uint64_t version = 1, sequences = 3, documents = 3;
  std::uint8_t code = 8;
  std::vector<std::int32_t> sizes{3, 1, 2};
  std::vector<std::int64_t> pointers{0, 6, 8}, index{0, 2, 3};
  std::string bin = raw(std::vector<std::uint16_t>{10, 11, 12, 20, 30, 65535});

  std::string idx() const {
    return magic + raw(version) + raw(code) + raw(sequences) + raw(documents) + raw(sizes) + raw(pointers) +
           raw(index);
  }
  void write(const Folder& folder) const {
    spill(folder / "d.idx", idx());
    spill(folder / "d.bin", bin);
  }
};

TEST(MegatronTokens, AreReadByAnyOfTheirNames) {
  const Folder folder;
  Megatron().write(folder);
  for (const char* name : {"d", "d.bin", "d.idx"}) {
    const auto data = TokenDataset::open(folder / name);
    EXPECT_EQ(data->size(), 6);
    EXPECT_EQ(data->num_documents(), 2);
    EXPECT_EQ(data->vocab_size(), 0);
    EXPECT_EQ(data->tokenizer(), "");
    EXPECT_FALSE(data->has_validation());
    EXPECT_THAT(read(*data, 0, 6), ElementsAre(10, 11, 12, 20, 30, 65535));
    EXPECT_THAT(read(*data, 2, 3), ElementsAre(12, 20, 30));
    data->limit_vocab(1000);
    EXPECT_THAT(error_of([&] { read(*data, 0, 6); }),
                AllOf(HasSubstr("d.bin"), HasSubstr("token 5"), HasSubstr("65535")));
  }
  EXPECT_THAT(opening(folder / "d", Split::validation), HasSubstr("no validation split"));
}

TEST(MegatronTokens, MayLieInAnyOrderAndType) {
  const Folder folder;
  Megatron m;
  m.pointers = {6, 10, 0};  // the last overlaps the first: allowed, they are only read
  m.write(folder);
  EXPECT_THAT(read(*TokenDataset::open(folder / "d"), 0, 6), ElementsAre(20, 30, 65535, 65535, 10, 11));
  EXPECT_THAT(read(*TokenDataset::open(folder / "d"), 2, 3), ElementsAre(65535, 65535, 10));
  const auto as = [&](std::uint8_t code, const std::string& bin, std::int64_t width) {
    Megatron typed;
    typed.code = code;
    typed.bin = bin;
    typed.pointers = {0, 3 * width, 4 * width};
    typed.write(folder);
    return read(*TokenDataset::open(folder / "d"), 1, 5);
  };
  const Ids ids{2, 3, 4, 5, 100};
  EXPECT_EQ(as(1, raw(std::vector<std::uint8_t>{1, 2, 3, 4, 5, 100}), 1), ids);
  EXPECT_EQ(as(2, raw(std::vector<std::int8_t>{1, 2, 3, 4, 5, 100}), 1), ids);
  EXPECT_EQ(as(3, raw(std::vector<std::int16_t>{1, 2, 3, 4, 5, 100}), 2), ids);
  EXPECT_EQ(as(4, raw(std::vector<std::int32_t>{1, 2, 3, 4, 5, 100}), 4), ids);
  EXPECT_EQ(as(5, raw(std::vector<std::int64_t>{1, 2, 3, 4, 5, 100}), 8), ids);
  EXPECT_THAT(error_of([&] {
                as(4, raw(std::vector<std::int32_t>{1, 2, -3, 4, 5, 100}), 4);
              }),
              HasSubstr("token 2"));
  EXPECT_THAT(error_of([&] {
                as(5, raw(std::vector<std::int64_t>{1, 2, 3, 1LL << 40, 5, 100}), 8);
              }),
              HasSubstr("1099511627776"));
}

TEST(MegatronTokens, SayWhatIsWrong) {
  const Folder folder;
  const auto broken = [&](const std::function<void(Megatron&)>& change) {
    Megatron m;
    change(m);
    m.write(folder);
    return opening(folder / "d");
  };
  EXPECT_THAT(broken([](Megatron& m) { m.magic[0] = 'X'; }),
              AllOf(HasSubstr("d.idx"), HasSubstr("not a Megatron index")));
  EXPECT_THAT(broken([](Megatron& m) { m.version = 2; }), HasSubstr("version 1, got 2"));
  for (const int code : {0, 6, 7, 9, 255})
    EXPECT_THAT(broken([&](Megatron& m) { m.code = static_cast<std::uint8_t>(code); }),
                HasSubstr("got code"));
  EXPECT_THAT(broken([](Megatron& m) { m.sequences = 4; }), HasSubstr("truncated"));
  EXPECT_THAT(broken([](Megatron& m) { m.sequences = ~std::uint64_t{0} / 12 + 1; }), HasSubstr("truncated"));
  EXPECT_THAT(broken([](Megatron& m) { m.documents = ~std::uint64_t{0}; }), HasSubstr("truncated"));
  EXPECT_THAT(broken([](Megatron& m) { m.index.push_back(3); }), HasSubstr("8 bytes more"));
  EXPECT_THAT(broken([](Megatron& m) { m.sizes[2] = 3; }),
              AllOf(HasSubstr("sequence 2"), HasSubstr("[8, 14)")));
  EXPECT_THAT(broken([](Megatron& m) { m.sizes[1] = -1; }), HasSubstr("sequence 1"));
  EXPECT_THAT(broken([](Megatron& m) { m.pointers[1] = -2; }), HasSubstr("sequence 1"));
  EXPECT_THAT(broken([](Megatron& m) { m.pointers[1] = std::int64_t{1} << 62; }), HasSubstr("sequence 1"));
  EXPECT_THAT(broken([](Megatron& m) { m.index[1] = 4; }), HasSubstr("document 1"));
  EXPECT_THAT(broken([](Megatron& m) { m.sizes = {0, 0, 0}; }), HasSubstr("no tokens"));
  EXPECT_THAT(broken([](Megatron& m) { m.bin.clear(); }), AllOf(HasSubstr("d.bin"), HasSubstr("empty")));
  EXPECT_THAT(broken([](Megatron& m) { m.bin.resize(11); }), HasSubstr("of 11 bytes"));
  const std::string whole = Megatron().idx();
  for (std::size_t size = 0; size < whole.size(); ++size) {
    spill(folder / "d.idx", whole.substr(0, size));
    EXPECT_THAT(opening(folder / "d"), HasSubstr("d.idx")) << size;
  }
  std::filesystem::remove(folder / "d.idx");
  EXPECT_THAT(opening(folder / "d"), HasSubstr("the .bin only"));
  EXPECT_THAT(opening(folder / "e.bin"), HasSubstr("neither"));
}

// ---- order

TEST(SampleOrder, IsAPermutationOfEachEpoch) {
  for (const std::int64_t n : {1, 2, 3, 5, 16, 17, 1000, 4097}) {
    const SampleOrder order(n * 8 + 1, 8, 42);
    ASSERT_EQ(order.samples_per_epoch(), n);
    for (const std::int64_t epoch : {0, 1, 1'000'000}) {
      std::set<std::int64_t> seen;
      for (std::int64_t i = 0; i < n; ++i) seen.insert(order.sample(epoch, i));
      EXPECT_EQ(std::ssize(seen), n);
      EXPECT_EQ(*seen.rbegin(), n - 1);
    }
  }
}

TEST(SampleOrder, DiffersByEpochAndSeedAndIsReproducible) {
  const auto order = [](std::uint64_t seed, std::int64_t epoch) {
    Ids out;
    const SampleOrder o(1000 * 4 + 3, 4, seed);
    for (int i = 0; i < 1000; ++i) out.push_back(static_cast<std::int32_t>(o.sample(epoch, i)));
    return out;
  };
  const auto agreeing = [](const Ids& a, const Ids& b) {
    return std::inner_product(a.begin(), a.end(), b.begin(), 0, std::plus<>(), std::equal_to<>());
  };
  EXPECT_EQ(order(1, 0), order(1, 0));
  // Two random permutations agree in one place on average.
  EXPECT_LT(agreeing(order(1, 0), order(1, 1)), 10);
  EXPECT_LT(agreeing(order(1, 0), order(2, 0)), 10);
  Ids sorted(1000);
  std::iota(sorted.begin(), sorted.end(), 0);
  EXPECT_LT(agreeing(order(0, 0), sorted), 10);
  // Neighbours are scattered: a step is n / 3 on average.
  const Ids ids = order(3, 2);
  double step = 0;
  for (std::size_t i = 1; i < ids.size(); ++i) step += std::abs(ids[i] - ids[i - 1]);
  EXPECT_NEAR(step / 999, 333, 40);
}

TEST(SampleOrder, OfTerabytesTakesNoMemory) {
  const SampleOrder order(std::int64_t{1} << 42, 2048, 7);
  std::set<std::int64_t> seen;
  for (std::int64_t number = 0; number < 1000; ++number) {
    const std::int64_t begin = order.begin((std::int64_t{1} << 33) + number);
    EXPECT_EQ(begin % 2048, 0);
    EXPECT_LE(begin + 2049, std::int64_t{1} << 42);
    seen.insert(begin);
  }
  EXPECT_EQ(seen.size(), 1000U);
}

TEST(SampleOrder, NeedsOneWholeSample) {
  EXPECT_EQ(SampleOrder(9, 8, 0).samples_per_epoch(), 1);
  EXPECT_THAT(error_of([] { SampleOrder(8, 8, 0); }),
              AllOf(HasSubstr("takes 9"), HasSubstr("the data has 8")));
}

TEST(ReadBatch, GivesWindowsAndTheirNextTokens) {
  const Folder folder;
  std::vector<std::int32_t> ids(4 * 5 + 1);
  std::iota(ids.begin(), ids.end(), 0);
  Megatron m;
  m.code = 4;
  m.sizes = {static_cast<std::int32_t>(ids.size()), 0, 0};
  m.pointers = {0, 84, 84};
  m.bin = raw(ids);
  m.write(folder);
  const auto data = TokenDataset::open(folder / "d");
  const SampleOrder order(data->size(), 4, 5), plain = SampleOrder::sequential(data->size(), 4);
  Ids x(3 * 6, -1), y(3 * 4);
  // Rows of a wider buffer, over the end of an epoch of five.
  const View tokens = View(reinterpret_cast<std::byte*>(x.data()), DType::i32, {3, 6}).slice(1, 1, 5);
  const View targets(reinterpret_cast<std::byte*>(y.data()), DType::i32, {3, 4});
  read_batch(*data, order, 3, tokens, targets);
  for (std::size_t i = 0; i < 3; ++i) {
    const std::int64_t number = 3 + static_cast<std::int64_t>(i);
    const std::int64_t begin = order.sample(number / 5, number % 5) * 4;
    for (std::size_t t = 0; t < 4; ++t) {
      EXPECT_EQ(x[i * 6 + 1 + t], begin + static_cast<std::int64_t>(t));
      EXPECT_EQ(y[i * 4 + t], begin + static_cast<std::int64_t>(t) + 1);
    }
    EXPECT_EQ(x[i * 6], -1);
    EXPECT_EQ(x[i * 6 + 5], -1);
  }
  read_batch(*data, plain, 1, tokens.slice(0, 0, 2), targets.slice(0, 0, 2));
  EXPECT_THAT(Ids(y.begin(), y.begin() + 8), ElementsAre(5, 6, 7, 8, 9, 10, 11, 12));
  EXPECT_THAT(error_of([&] { read_batch(*data, order, 0, tokens, targets.slice(0, 0, 2)); }),
              HasSubstr("targets"));
}

}  // namespace
}  // namespace transmamba
