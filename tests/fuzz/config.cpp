// Configuration text, and after a NUL the words of a command line, each ended by a NUL.
#include "core/config.h"

#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace transmamba;
  std::istringstream in(std::string(reinterpret_cast<const char*>(data), size));
  std::string text;
  std::getline(in, text, '\0');
  std::vector<std::string> words;
  for (std::string word; std::getline(in, word, '\0');) words.push_back(word);
  fuzz::allow_error([&] {
    const Config config = parse_config_text(text, "fuzz", words);
    fuzz::expect(parse_config_text(config.to_ini(), "printed", {}) == config);
    fuzz::allow_error([&] { config.validate_training(); });
  });
  return 0;
}
