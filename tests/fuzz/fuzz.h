// For libFuzzer's targets: a reader takes any bytes, and answers with what it read or with an Error. Anything
// else, another exception or what a sanitizer sees, ends the process and leaves the input in a file.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>

#include "core/hdf5_file.h"
#include "kernels/check.h"

namespace transmamba::fuzz {

/// One of the process, in memory where there is /dev/shm.
inline const std::filesystem::path& folder() {
  // Never destroyed: what removes it comes later than that would.
  static const std::filesystem::path& path = *[] {
    std::error_code none;
    std::string name = std::filesystem::is_directory("/dev/shm", none) ? "/dev/shm" : "/tmp";
    name += "/transmamba-fuzz-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) std::abort();
    std::atexit([] { std::filesystem::remove_all(folder()); });
    return new std::filesystem::path(name);
  }();
  return path;
}

inline void write_file(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

/// What a property that does not hold does.
inline void expect(bool holds) {
  if (!holds) std::abort();
}

template <class F>
void allow_error(F&& f) {
  try {
    f();
  } catch (const Error&) {
  }
}

template <class T>
std::vector<T> numbers(std::istream& in) {
  std::vector<T> values;
  for (std::int64_t value = 0; in >> value;) values.push_back(static_cast<T>(value));
  return values;
}

/// A line of a text says what an HDF5 file is given: `int NAME 5`, `real NAME 0.5`, `bool NAME 1`, `text NAME
/// ..` as attributes, with \n as two characters, `u8 NAME 1 2 3`, `u16`, `u32`, `i32`, `i64`, `f32` as
/// datasets. What HDF5 does not take, a name twice say, is left out.
inline void put(Hdf5File& file, const std::string& line) {
  std::istringstream in(line);
  std::string type, name;
  in >> type >> name;
  allow_error([&] {
    if (type == "int") {
      std::int64_t value = 0;
      in >> value;
      file.set_attribute(name, value);
    } else if (type == "real") {
      double value = 0;
      in >> value;
      file.set_attribute(name, value);
    } else if (type == "bool") {
      file.set_attribute(name, line.ends_with('1'));
    } else if (type == "text") {
      std::string rest, value;
      std::getline(in >> std::ws, rest);
      for (std::size_t i = 0; i < rest.size(); ++i) {
        const bool is_end = rest[i] == '\\' && i + 1 < rest.size() && rest[i + 1] == 'n';
        value += is_end ? '\n' : rest[i];
        i += is_end;
      }
      file.set_attribute(name, value);
    } else if (type == "u8") {
      file.write(name, numbers<std::uint8_t>(in));
    } else if (type == "u16") {
      file.write(name, numbers<std::uint16_t>(in));
    } else if (type == "u32") {
      file.write(name, numbers<std::uint32_t>(in));
    } else if (type == "i32") {
      file.write(name, numbers<std::int32_t>(in));
    } else if (type == "i64") {
      file.write(name, numbers<std::int64_t>(in));
    } else if (type == "f32") {
      file.write(name, numbers<float>(in));
    }
  });
}

}  // namespace transmamba::fuzz
