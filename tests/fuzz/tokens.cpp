// The attributes and datasets of a token file that is whole as an HDF5 file: on damaged ones the HDF5 library
// itself may crash.
#include "core/tokens.h"

#include <array>

#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace transmamba;
  const std::filesystem::path path = fuzz::folder() / "tokens.h5";
  {
    Hdf5File file = Hdf5File::create(path);
    std::istringstream in(std::string(reinterpret_cast<const char*>(data), size));
    for (std::string line; std::getline(in, line);) fuzz::put(file, line);
    file.close();
  }
  for (const Split split : {Split::train, Split::validation})
    fuzz::allow_error([&] {
      const auto tokens = TokenDataset::open(path, split);
      fuzz::expect(tokens->size() > 0 && tokens->num_documents() > 0);
      fuzz::expect(tokens->vocab_size() > 0 && tokens->end_of_document() < tokens->vocab_size());
      fuzz::allow_error([&] { make_tokenizer(tokens->tokenizer(), tokens->tokenizer_model()); });
      std::array<std::int32_t, 300> out;
      const std::int64_t few = std::min<std::int64_t>(tokens->size(), std::ssize(out));
      tokens->read(tokens->size() - few, std::span(out).first(static_cast<std::size_t>(few)));
      for (std::int64_t i = 0; i < few; ++i)
        fuzz::expect(0 <= out[static_cast<std::size_t>(i)] &&
                     out[static_cast<std::size_t>(i)] < tokens->vocab_size());
    });
  return 0;
}
