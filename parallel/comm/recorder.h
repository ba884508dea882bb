// Counts what ranks say to each other: calls, bytes and seconds by axis and purpose.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

namespace transmamba {

class LastWords;
class Profile;

/// Of one rank. Bytes are those that this rank sends to others in the best algorithm (of n ranks): all_gather
/// (n - 1) mine, reduce_scatter (n - 1) / n all, all_reduce 2 (n - 1) / n x, broadcast x at the root,
/// exchange and send what goes to others. `seconds` run from start to completion as seen by the call's own
/// poll() or wait(), `exposed` is the part that the rank spent inside start(), poll() and wait().
struct Traffic {
  std::int64_t calls = 0, bytes = 0;
  double seconds = 0, exposed = 0;
  Traffic& operator+=(const Traffic& other);
};

class Recorder {
 public:
  using Key = std::pair<std::string, std::string>;  ///< axis, purpose
  void add(std::string_view axis, std::string_view purpose, const Traffic& traffic);
  std::map<Key, Traffic> table() const;
  Traffic total(std::string_view purpose) const;  ///< over all axes
  void reset();
  /// In which step the rank is, for what is said of calls that do not end; 0: none.
  void set_step(std::int64_t step) { step_ = step; }
  std::int64_t step() const { return step_; }
  /// Where a run is profiled its calls go there too; null: nowhere. Must outlive them.
  void set_profile(Profile* profile) { profile_ = profile; }
  Profile* profile() const { return profile_; }
  /// What the rank says where it is told to end while it waits (roll_call.h); null: nothing. Must outlive
  /// the calls.
  void set_last_words(LastWords* words) { last_words_ = words; }
  LastWords* last_words() const { return last_words_; }

 private:
  struct Less {  // finds a key without making strings: thousands of calls a step pass here
    using is_transparent = void;
    bool operator()(const auto& a, const auto& b) const {
      const int axis = std::string_view(a.first).compare(b.first);
      return axis != 0 ? axis < 0 : std::string_view(a.second) < std::string_view(b.second);
    }
  };
  mutable std::mutex mutex_;
  std::map<Key, Traffic, Less> table_;
  Profile* profile_ = nullptr;
  LastWords* last_words_ = nullptr;
  std::int64_t step_ = 0;
};

}  // namespace transmamba
