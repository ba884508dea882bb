// The page of a scaling experiment: HTML that is XML too, with all that it needs inside.
#include "tools/scale/page.h"

#include <fmt/format.h>

#include <algorithm>

#include "launch/child_process.h"

namespace transmamba {
namespace {

constexpr auto kStyle = R"(
:root { color-scheme: light dark; --ink: #1d2430; --soft: #667085; --line: #dfe3ea; --paper: #ffffff; --card: #f7f8fa;
  --c0: #1769b5; --c1: #c2500a; --c2: #14805e; --c3: #7b3fa0; --c4: #94700a; --c5: #b3175a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #353b47; --paper: #14171d;
  --card: #1c2028; --c0: #6cb4ee; --c1: #ff9e57; --c2: #4fd0a5; --c3: #c79be8; --c4: #e0bf55; --c5: #ff86b3; } }
body { margin: 0 auto; max-width: 1180px; padding: 24px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 26px; margin: 0 0 8px; } h2 { font-size: 20px; margin: 36px 0 4px; }
p { margin: 6px 0; } .soft, .soft td { color: var(--soft); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 16px; margin: 12px 0; }
.plots svg { width: 100%; height: auto; background: var(--card); border-radius: 8px; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); } svg .title { font-size: 14px; font-weight: 600; fill: var(--ink); }
svg .grid { stroke: var(--line); stroke-width: 1; } svg .axis { stroke: var(--soft); stroke-width: 1; }
svg polyline { fill: none; stroke: currentColor; stroke-width: 2; } svg .whisker { stroke: currentColor; stroke-width: 1.2; }
svg .point, svg .bar { fill: currentColor; } svg .predicted polyline { stroke-dasharray: 6 4; stroke-width: 1.6; }
svg .ideal polyline { stroke-width: 0.8; opacity: 0.7; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); } .c3 { color: var(--c3); } .c4 { color: var(--c4); } .c5 { color: var(--c5); }
.legend span { margin-right: 18px; } .legend b { color: var(--ink); font-weight: 500; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; white-space: nowrap; }
th { text-align: right; font-weight: 600; vertical-align: bottom; } th, td { padding: 3px 10px; border-bottom: 1px solid var(--line); }
td { text-align: right; font-variant-numeric: tabular-nums; } th:first-child, td:first-child, td.reason { text-align: left; }
td.reason { white-space: normal; } pre { background: var(--card); padding: 12px; border-radius: 8px; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px; }
)";

std::string paragraph(const std::string& html, const char* style = "") {
  return fmt::format("<p class=\"{}\">{}</p>\n", style, html);
}

std::string heading(const ScaleReport& report) {
  std::string text = "<h1>Scaling of transmamba</h1>\n";
  text += paragraph(escape_xml(fmt::format("{}, on {} ({})", report.date, report.host, report.processor)),
                    "soft");
  if (report.sweep.runs.empty()) return text;
  const bool on_gpus = std::any_of(report.sweep.runs.begin(), report.sweep.runs.end(),
                                   [](const ScaleRun& run) { return run.config.train.device == "cuda"; });
  text += paragraph(
      "Solid: measured, the median over steps with whiskers from the shortest to the longest. Dashed: what "
      "the plan "
      "predicts. Thin: ideal. Efficiency is the rate of a run by rank over that of the first of its line; a "
      "rate counts "
      "the model&apos;s FLOPs, so that longer sequences count as what they cost. Exposed communication is "
      "the time in "
      "which a rank waits for others, mean over ranks; waiting for those who come late is part of it.");
  if (on_gpus)
    text += paragraph(
        "On GPUs, calls on GPU memory are timed where the host enqueues them, so what is measured of exposed "
        "communication is what the host waited.");
  text += paragraph(escape_xml(
      fmt::format("Predictions beside measurements are of \"{}\": {}. Data: {}. The first {} steps of each "
                  "run do not count.",
                  report.machine.name, report.machine.measured_on, report.data, report.sweep.warmup)));
  const std::string& dtype = report.sweep.runs[0].config.train.dtype;
  if (report.machine.dtype != dtype)
    text += paragraph(
        escape_xml(fmt::format("Its numbers are of {}, these runs compute in {}: expect other seconds.",
                               report.machine.dtype, dtype)));
  return text;
}

std::string cluster_heading(const Cluster& cluster) {
  std::string sources;
  for (const std::string& source : cluster.sources)
    sources += fmt::format("<li>{}</li>\n", escape_xml(source));
  return fmt::format(
             "<h2>Predicted for {}</h2>\n"
             "<p>Nothing here is measured. Of all meshes tp x cp x dp x pp (tp within a host, cp up to 64, "
             "pp up to 16) "
             "that fit into {:.4g} GiB a rank, each number of ranks has the one that the cost model says is "
             "the "
             "fastest. Assumed: links are as fast for many as for two, a collective is one ring whose steps "
             "each have "
             "the latency of a message, an axis that leaves a host goes at the speed of one port a rank, "
             "communication "
             "of tp and cp is never hidden, that of dp behind one micro-batch, and nothing waits for data, "
             "stragglers "
             "or checkpoints.</p>\n<ul>\n",
             escape_xml(cluster.name), cluster.memory_bytes / (1 << 30)) +
         sources + "</ul>\n";
}

std::string commands(const ScaleReport& report, const std::filesystem::path& folder) {
  std::string lines = report.command + "\n\n";
  for (const ScaleRun& run : report.sweep.runs)
    if (run.impossible.empty()) lines += shell_words(run_command_of(run, report.launcher, folder)) + "\n";
  return "<h2>To reproduce</h2>\n<p>All, and then each run; random tokens are gone at the end, so runs on "
         "them need data.path.</p>\n<pre>" +
         escape_xml(lines) + "</pre>\n";
}

/// Sizes and modes in the order in which they come.
template <class Items>
std::vector<std::pair<std::string, std::string>> sections_of(const Items& items) {
  std::vector<std::pair<std::string, std::string>> found;
  for (const auto& item : items)
    if (std::find(found.begin(), found.end(), std::pair(item.size, item.mode)) == found.end())
      found.emplace_back(item.size, item.mode);
  return found;
}

}  // namespace

std::string legend(const std::string& about, const std::vector<std::string>& names) {
  std::string out = "<p class=\"legend\">";
  if (!about.empty()) out += fmt::format("<span class=\"soft\">{}</span>", escape_xml(about));
  for (std::size_t i = 0; i < names.size(); ++i)
    out += fmt::format("<span class=\"c{}\">&#9632; <b>{}</b></span>", i % kPlotColors, escape_xml(names[i]));
  return out + "</p>\n";
}

std::string row(const std::vector<std::string>& cells) {
  std::string out = "<tr>";
  for (const std::string& cell : cells) out += "<td>" + cell + "</td>";
  return out + "</tr>\n";
}

std::string table(const std::vector<std::string>& head, const std::vector<std::string>& rows) {
  std::string out = "<div class=\"wide\"><table>\n<tr>";
  for (const std::string& cell : head) out += "<th>" + escape_xml(cell) + "</th>";
  out += "</tr>\n";
  for (const std::string& cells : rows) out += cells;
  return out + "</table></div>\n";
}

std::string scale_page(const ScaleReport& report, const std::filesystem::path& folder) {
  std::string out = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\" xmlns=\"http://www.w3.org/1999/xhtml\">\n<head>\n<meta "
      "charset=\"utf-8\"/>\n"
      "<meta name=\"viewport\" content=\"width=device-width\"/>\n<title>Scaling of transmamba</title>\n"
      "<style>{}</style>\n</head>\n<body>\n",
      kStyle);
  out += heading(report);
  for (const auto& [size, mode] : sections_of(report.sweep.points))
    out += measured_section(report, size, mode);
  if (report.cluster) {
    out += cluster_heading(*report.cluster);
    for (const auto& [size, mode] : sections_of(report.carried_on))
      out += carried_section(report, size, mode);
  }
  return out + commands(report, folder) + "</body>\n</html>\n";
}

}  // namespace transmamba
