// Errors. Libraries throw `Error`; only `launch/` ends the process.
#pragma once

#include <fmt/core.h>

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace transmamba {

/// What a user reads when something is wrong: "[where] what: expected .., got ..".
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <class... Args>
[[noreturn]] void fail(std::string_view where, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format("[{}] {}", where, fmt::format(format, std::forward<Args>(args)...)));
}

/// Throws Error unless `ok`. The message is only formatted on failure.
template <class... Args>
void check(bool ok, std::string_view where, fmt::format_string<Args...> format, Args&&... args) {
  if (!ok) [[unlikely]]
    fail(where, format, std::forward<Args>(args)...);
}

}  // namespace transmamba
