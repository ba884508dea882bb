// Megatron's .idx: after a byte, which is the size of the .bin.
#include <array>

#include "core/tokens.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace transmamba;
  if (size == 0) return 0;
  std::string bin;
  for (int i = 0; i < data[0]; ++i) bin += static_cast<char>(i % 7 == 3 ? 0xFE : i % 3);
  fuzz::write_file(fuzz::folder() / "a.bin", bin);
  fuzz::write_file(fuzz::folder() / "a.idx", {reinterpret_cast<const char*>(data) + 1, size - 1});
  fuzz::allow_error([&] {
    const auto tokens = TokenDataset::open(fuzz::folder() / "a.idx");
    fuzz::expect(tokens->size() > 0);
    std::array<std::int32_t, 300> out;
    const auto read = [&](std::int64_t begin, std::int64_t count) {
      fuzz::allow_error([&] { tokens->read(begin, std::span(out).first(static_cast<std::size_t>(count))); });
    };
    const std::int64_t few = std::min<std::int64_t>(tokens->size(), std::ssize(out));
    read(0, few), read(tokens->size() - few, few), read(tokens->size() / 2, 1), read(tokens->size(), 1);
  });
  return 0;
}
