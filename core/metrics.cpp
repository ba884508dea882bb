#include "core/metrics.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/check.h"

namespace transmamba {
namespace {

/// Where the lines of steps up to `last` end. What follows is of later steps, or torn.
std::int64_t end_of_lines_until(const std::filesystem::path& path, std::int64_t last) {
  std::ifstream in(path, std::ios::binary);
  std::int64_t end = 0;
  for (std::string line; std::getline(in, line) && !in.eof();) {  // a line without its end is torn
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("step")) continue;
    const auto& step = json["step"];
    if (step.is_number_integer() && step.get<std::int64_t>() <= last) end = in.tellg();
  }
  return end;
}

/// Cut in place, so that a crash leaves the old lines or the new: losses of a long run have no second copy.
void cut_after(const std::filesystem::path& path, std::int64_t step) {
  if (!std::filesystem::is_regular_file(path)) return;
  std::error_code error;
  std::filesystem::resize_file(path, static_cast<std::uintmax_t>(end_of_lines_until(path, step)), error);
  check(!error, "metrics", "{}: cannot write: {}", path.string(), error.message());
}

/// Where fmt::print would throw, a full disk behind our output would end the run.
void put(std::FILE* to, const std::string& text) {
  std::fputs(text.c_str(), to);
  std::fflush(to);
}

std::size_t terminal_columns() {
  winsize size{};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

std::string format_bytes(std::int64_t bytes) {
  const double mib = static_cast<double>(bytes) / (1 << 20);
  return mib < 10240 ? fmt::format("{:.0f} MiB", mib) : fmt::format("{:.1f} GiB", mib / 1024);
}

std::string format_duration(double seconds) {
  const auto s = static_cast<std::int64_t>(std::llround(seconds));
  if (s < 60) return fmt::format("{}s", s);
  if (s < 3600) return fmt::format("{}m{:02}s", s / 60, s % 60);
  return fmt::format("{}h{:02}m", s / 3600, s / 60 % 60);
}

std::string format_line(const StepMetrics& m) {
  const std::string rate = m.is_mfu ? fmt::format("MFU {:.1f}%", 100 * m.peak_fraction)
                                    : fmt::format("{:.0f}% of peak", 100 * m.peak_fraction);
  std::string text = fmt::format(
      "step {:>{}}/{}  loss {:.4f}  grad_norm {:.3f}  lr {:.2e}  {:.0f} tokens/s  {}  {}  {} left", m.step,
      std::to_string(m.steps).size(), m.steps, m.loss, m.grad_norm, m.lr, m.tokens_per_second, rate,
      format_bytes(m.memory_bytes), format_duration(m.seconds_left));
  constexpr double kWorthSaying = 0.25;  // ranks of one machine differ by chance
  if (m.slowest_excess > kWorthSaying)
    text += fmt::format("  rank {} slower by {:.0f}%", m.slowest_rank, 100 * m.slowest_excess);
  if (m.stall_seconds > 0) text += fmt::format("  stall {:.3f} s", m.stall_seconds);
  if (m.skipped > 0) text += fmt::format("  {} skipped", m.skipped);
  return text;
}

MetricsLog::MetricsLog(std::filesystem::path jsonl, std::int64_t resumed_step, std::int64_t every, bool alone)
    : path_(std::move(jsonl)),
      every_(every),
      terminal_(alone && isatty(STDOUT_FILENO) != 0),
      is_new_(resumed_step == 0) {
  if (path_.empty()) return;
  if (resumed_step > 0) cut_after(path_, resumed_step);
  if (path_.has_parent_path()) {
    std::error_code ignored;  // the open below says what is wrong
    std::filesystem::create_directories(path_.parent_path(), ignored);
  }
  file_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | (resumed_step > 0 ? 0 : O_TRUNC),
                 0666);
  check(file_ >= 0, "metrics", "{}: cannot write: {}", path_.string(), std::strerror(errno));
}

MetricsLog::~MetricsLog() {
  if (live_) put(stdout, "\n");
  if (file_ >= 0) ::close(file_);
}

void MetricsLog::write(const std::string& json) {
  if (file_ < 0) return;
  if (append(json)) {
    is_new_ = false;
    return;
  }
  check(!is_new_, "metrics", "{}: cannot write: {}", path_.string(), std::strerror(errno));
  if (has_warned_) return;
  has_warned_ = true;
  warn(fmt::format("{}: cannot write: {}; training goes on, and lines are missing there while that is so",
                   path_.string(), std::strerror(errno)));
}

/// All of a line or nothing. Where it gives false errno says why.
bool MetricsLog::append(const std::string& line) {
  if (torn_ && ::ftruncate(file_, end_) != 0) return false;
  torn_ = false;
  end_ = ::lseek(file_, 0, SEEK_END);  // -1 of a pipe, which cannot be cut
  for (std::size_t done = 0; done < line.size();) {
    const ssize_t wrote = ::write(file_, line.data() + done, line.size() - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) {
      const int why = errno;
      torn_ = done > 0 && ::ftruncate(file_, end_) != 0;
      errno = why;
      return false;
    }
    done += static_cast<std::size_t>(wrote);
  }
  return true;
}

void MetricsLog::step(const StepMetrics& m) {
  if (is_line_due(m.step, every_, m.steps)) {
    note(format_line(m));
  } else if (terminal_) {
    put(stdout,
        "\r\033[K" + format_line(m).substr(0, terminal_columns()));  // a wrapped line could not be rewritten
    live_ = true;
  }
  const nlohmann::ordered_json json = {{"step", m.step},
                                       {"loss", m.loss},
                                       {"grad_norm", m.grad_norm},
                                       {"lr", m.lr},
                                       {"tokens_per_second", m.tokens_per_second},
                                       {"peak_fraction", m.peak_fraction},
                                       {"is_mfu", m.is_mfu},
                                       {"memory_bytes", m.memory_bytes},
                                       {"resident_bytes", m.resident_bytes},
                                       {"skipped", m.skipped},
                                       {"stall_seconds", m.stall_seconds},
                                       {"slowest_rank", m.slowest_rank},
                                       {"slowest_excess", m.slowest_excess}};
  write(json.dump() + "\n");
}

void MetricsLog::validation(std::int64_t step, double loss) {
  note(fmt::format("step {}  validation loss {:.4f}  ({:.3f} bits a token, perplexity {:.2f})", step, loss,
                   loss / std::log(2.0), std::exp(loss)));
  write(nlohmann::ordered_json{{"step", step}, {"validation_loss", loss}}.dump() + "\n");
}

void MetricsLog::warn(const std::string& text) {
  put(stdout, live_ ? "\r\033[K" : "");
  live_ = false;
  put(stderr, fmt::format("warning: {}\n", text));
}

void MetricsLog::note(const std::string& text) {
  put(stdout, fmt::format("{}{}\n", live_ ? "\r\033[K" : "", text));
  live_ = false;
}

}  // namespace transmamba
