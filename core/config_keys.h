// The one table that binds every member of Config to its key. Parsing, printing, checking and `--help` read
// it.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/config.h"

namespace transmamba {

struct ConfigKey {
  std::string name;  ///< section.key
  std::string help;  ///< one line
  std::string
      allowed;  ///< type and range or choices as help and errors say it, e.g. "an integer of at least 1"

  std::function<bool(Config&, const std::string&)> assign;  ///< false, changing nothing: not of the type
  std::function<bool(const Config&)> within;                ///< whether the member is in the range or choices
  std::function<std::string(const Config&)> print;  ///< text that `assign` reads back to an equal value

  std::string_view section() const { return std::string_view(name).substr(0, name.find('.')); }
  std::string_view key() const { return std::string_view(name).substr(name.find('.') + 1); }
};

/// In the order in which they are printed; keys of a section stand together.
const std::vector<ConfigKey>& config_keys();

/// Null for an unknown name.
const ConfigKey* find_config_key(std::string_view name);

/// What to tell a user who wrote `name`, which is no key: the nearest key and what the section holds.
std::string suggest_config_key(std::string_view name);

}  // namespace transmamba
