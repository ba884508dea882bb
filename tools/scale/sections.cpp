#include <fmt/format.h>

#include <algorithm>

#include "tools/scale/page.h"

namespace transmamba {
namespace {

constexpr double kMiB = 1 << 20;

double total(const std::map<std::string, double>& parts) {
  double sum = 0;
  for (const auto& [name, seconds] : parts) sum += seconds;
  return sum;
}

std::string mesh_name(const ParallelConfig& p) {
  return fmt::format("tp {} cp {} dp {} pp {}", p.tp, p.cp, p.dp, p.pp);
}

std::string seconds_text(double seconds) {
  return seconds < 1 ? fmt::format("{:.4g} ms", 1e3 * seconds) : fmt::format("{:.4g} s", seconds);
}

std::string memory_text(double bytes) {
  return bytes < 10240 * kMiB ? fmt::format("{:.1f} MiB", bytes / kMiB)
                              : fmt::format("{:.1f} GiB", bytes / kMiB / 1024);
}

std::string percent(std::optional<double> share) { return share ? fmt::format("{:.1f}%", 100 * *share) : ""; }

std::string reason_row(const std::string& first, int ranks, std::size_t columns, const std::string& reason) {
  return fmt::format(
      "<tr class=\"soft\"><td>{}</td><td>{}</td><td class=\"reason\" colspan=\"{}\">{}</td></tr>\n",
      escape_xml(first), ranks, columns, escape_xml(reason));
}

/// Of one size and mode.
struct Section {
  const ScaleReport& report;
  std::vector<ScalePoint> points;
  std::vector<std::string> series;
  std::vector<double> ranks;

  const ScaleRun& run(const ScalePoint& point) const { return report.sweep.runs[point.run]; }
  std::int64_t warmup() const { return report.sweep.warmup; }
};

Section section_of(const ScaleReport& report, const std::string& size, const std::string& mode) {
  Section section{report, {}, {}, {}};
  for (const ScalePoint& point : report.sweep.points) {
    if (point.size != size || point.mode != mode) continue;
    section.points.push_back(point);
    if (section.series.empty() || section.series.back() != point.series)
      section.series.push_back(point.series);
    section.ranks.push_back(report.sweep.runs[point.run].ranks);
  }
  std::sort(section.ranks.begin(), section.ranks.end());
  section.ranks.erase(std::unique(section.ranks.begin(), section.ranks.end()), section.ranks.end());
  return section;
}

using Measure = std::optional<PlotPoint> (*)(const Section&, const ScalePoint&);

/// Measured and predicted lines of every series. Null: there is no such line.
Plot plot_of(const Section& section, const std::string& title, Measure measured, Measure predicted) {
  Plot plot;
  plot.title = title, plot.x_label = "ranks", plot.ticks = section.ranks;
  for (std::size_t i = 0; i < section.series.size(); ++i)
    for (const auto& [style, value] :
         {std::pair(LineStyle::measured, measured), {LineStyle::predicted, predicted}}) {
      PlotLine line{static_cast<int>(i), style, 0, {}};
      line.shift = 5 * (static_cast<double>(i) - 0.5 * static_cast<double>(section.series.size() - 1));
      for (const ScalePoint& point : section.points) {
        if (point.series != section.series[i]) continue;
        std::optional<PlotPoint> p = value(section, point);
        if (!p) continue;
        p->x = section.run(point).ranks;
        p->note = fmt::format("{}, {} ranks, {}: {}", point.series, section.run(point).ranks,
                              style == LineStyle::measured ? "measured" : "predicted", short_number(p->y));
        line.points.push_back(*p);
      }
      plot.lines.push_back(std::move(line));
    }
  return plot;
}

std::optional<PlotPoint> one(double y) { return PlotPoint{0, y, y, y, ""}; }

bool is_predicted(const ScaleRun& run) { return run.predicted && run.impossible.empty(); }

/// Each line's rate by rank, were it that of its first point for ever; of the lines that start highest and
/// lowest they would be the same picture, so the first one's serves.
PlotLine ideal_rate(const Section& section, const Plot& plot) {
  PlotLine ideal{0, LineStyle::ideal, 0, {}};
  for (const LineStyle style : {LineStyle::measured, LineStyle::predicted})
    for (const PlotLine& line : plot.lines) {
      if (line.style != style || line.points.empty() || !ideal.points.empty()) continue;
      ideal.color = line.color;
      for (const double ranks : section.ranks) {
        const double y = line.points[0].y * ranks / line.points[0].x;
        ideal.points.push_back({ranks, y, y, y, ""});
      }
    }
  return ideal;
}

Plot rate_plot(const Section& section) {
  Plot plot = plot_of(
      section, "tokens/s",
      [](const Section& s, const ScalePoint& p) -> std::optional<PlotPoint> {
        const ScaleRun& run = s.run(p);
        const auto m = run.measured(s.warmup());
        if (!m) return {};
        return PlotPoint{0, run.tokens() / m->median, run.tokens() / m->most, run.tokens() / m->least, ""};
      },
      [](const Section& s, const ScalePoint& p) -> std::optional<PlotPoint> {
        const ScaleRun& run = s.run(p);
        return is_predicted(run) ? one(run.tokens() / run.predicted->step.total()) : std::nullopt;
      });
  plot.log_y = true;
  plot.lines.push_back(ideal_rate(section, plot));
  return plot;
}

Plot efficiency_plot(const Section& section) {
  Plot plot = plot_of(
      section, "efficiency",
      [](const Section& s, const ScalePoint& p) -> std::optional<PlotPoint> {
        const auto e = measured_efficiency(s.report.sweep, p);
        if (!e) return {};
        const Spread m = *s.run(p).measured(s.warmup());
        return PlotPoint{0, 100 * *e, 100 * *e * m.median / m.most, 100 * *e * m.median / m.least, ""};
      },
      [](const Section& s, const ScalePoint& p) -> std::optional<PlotPoint> {
        const auto e = predicted_efficiency(s.report.sweep, p);
        return e ? one(100 * *e) : std::nullopt;
      });
  plot.unit = "%", plot.y_least_top = 100;
  PlotLine ideal{0, LineStyle::ideal, 0, {}};
  for (const double ranks : section.ranks) ideal.points.push_back({ranks, 100, 100, 100, ""});
  plot.lines.push_back(ideal);
  return plot;
}

Plot exposed_plot(const Section& section) {
  Plot plot = plot_of(
      section, "exposed communication, of a step",
      [](const Section& s, const ScalePoint& p) -> std::optional<PlotPoint> {
        const auto m = s.run(p).measured(s.warmup());
        return m ? one(100 * total(s.run(p).exposed()) / m->median) : std::nullopt;
      },
      [](const Section& s, const ScalePoint& p) -> std::optional<PlotPoint> {
        const ScaleRun& run = s.run(p);
        if (!is_predicted(run)) return {};
        return one(100 * total(predicted_exposed(run.predicted->step)) / run.predicted->step.total());
      });
  plot.unit = "%", plot.y_least_top = 10;
  return plot;
}

Plot memory_plot(const Section& section) {
  return plot_of(
      section, "memory of rank 0, MiB",
      [](const Section& s, const ScalePoint& p) -> std::optional<PlotPoint> {
        return s.run(p).rounds.empty() ? std::nullopt : one(s.run(p).memory_bytes() / kMiB);
      },
      [](const Section& s, const ScalePoint& p) -> std::optional<PlotPoint> {
        return is_predicted(s.run(p)) ? one(s.run(p).predicted->memory_rank0 / kMiB) : std::nullopt;
      });
}

/// "tp 12.3 / 8.0": measured and predicted ms of each axis that has any.
std::string exposed_text(const ScaleRun& run) {
  const auto measured = run.exposed(), predicted = predicted_exposed(run.predicted->step);
  std::string text;
  for (const std::string axis : {"tp", "cp", "pp", "dp", "world"}) {
    // Gradients and parameters go over dp and cp at once, and are counted as "data".
    const auto mine = measured.find(axis == "dp" ? "data" : axis), theirs = predicted.find(axis);
    const double ms = theirs == predicted.end() ? 0 : 1e3 * theirs->second;
    if (mine == measured.end() && ms < 1e-3) continue;
    text += fmt::format("{}{} {} / {:.3g}", text.empty() ? "" : ", ", axis,
                        mine == measured.end() ? "-" : fmt::format("{:.3g}", 1e3 * mine->second), ms);
  }
  return text;
}

std::string measured_table(const Section& section) {
  const std::vector<std::string> head{
      "series", "ranks",    "mesh",       "batch x tokens", "step",        "least .. most",  "predicted",
      "off by", "tokens/s", "efficiency", "predicted",      "exposed, ms", "memory, rank 0", "predicted"};
  std::vector<std::string> rows;
  for (const ScalePoint& point : section.points) {
    const ScaleRun& run = section.run(point);
    if (!run.impossible.empty()) {
      rows.push_back(reason_row(point.series, run.ranks, head.size() - 2, "not possible: " + run.impossible));
      continue;
    }
    if (!run.failure.empty())
      rows.push_back(reason_row(point.series, run.ranks, head.size() - 2, "failed: " + run.failure));
    const double predicted = run.predicted->step.total();
    std::vector<std::string> cells{
        escape_xml(point.series), std::to_string(run.ranks), mesh_name(run.config.parallel),
        fmt::format("{} x {}", run.config.train.global_batch, run.config.train.seq_len)};
    const auto m = run.measured(section.warmup());
    cells.push_back(m ? seconds_text(m->median) : "");
    cells.push_back(m ? fmt::format("{} .. {}", seconds_text(m->least), seconds_text(m->most)) : "");
    cells.push_back(seconds_text(predicted));
    cells.push_back(m ? fmt::format("{:+.1f}%", 100 * (predicted / m->median - 1)) : "");
    cells.push_back(m ? fmt::format("{:.0f}", run.tokens() / m->median) : "");
    cells.push_back(percent(measured_efficiency(section.report.sweep, point)));
    cells.push_back(percent(predicted_efficiency(section.report.sweep, point)));
    cells.push_back(exposed_text(run));
    cells.push_back(run.rounds.empty() ? "" : memory_text(run.memory_bytes()));
    cells.push_back(memory_text(run.predicted->memory_rank0));
    rows.push_back(row(cells));
  }
  return table(head, rows) +
         "<p class=\"soft\">Exposed communication: measured / predicted; world is what all ranks share, of "
         "which plans know nothing.</p>\n";
}

}  // namespace

std::string measured_section(const ScaleReport& report, const std::string& size, const std::string& mode) {
  const Section section = section_of(report, size, mode);
  if (section.points.empty()) return "";
  return fmt::format("<h2>{}: {} scaling</h2>\n<p class=\"soft\">{}</p>\n", escape_xml(size), mode,
                     mode == "strong"
                         ? "The same batch of the same length on more ranks."
                         : "The batch grows with the ranks; along cp, the length of sequences.") +
         legend("", section.series) + "<div class=\"plots\">\n" + svg(rate_plot(section)) +
         svg(efficiency_plot(section)) + svg(exposed_plot(section)) + svg(memory_plot(section)) + "</div>\n" +
         measured_table(section);
}

std::string carried_section(const ScaleReport& report, const std::string& size, const std::string& mode) {
  Plot rate, share;
  rate.title = "tokens/s", rate.log_y = true;
  share.title = "efficiency and MFU", share.unit = "%", share.y_least_top = 100;
  rate.x_label = share.x_label = "ranks";
  PlotLine tokens{0, LineStyle::predicted, 0, {}}, ideal{0, LineStyle::ideal, 0, {}};
  PlotLine efficiency{0, LineStyle::predicted, 0, {}}, mfu{1, LineStyle::predicted, 0, {}};
  BarPlot parts{"where a step goes", "ranks", {}, {"dp", "tp", "cp", "pp", "compute", "optimizer"}, {}};
  const std::vector<std::string> head{
      "size", "ranks", "mesh", "batch x tokens", "step",      "tokens/s", "efficiency", "MFU", "dp",
      "tp",   "cp",    "pp",   "compute",        "optimizer", "memory"};
  std::vector<std::string> rows;
  const CarriedOn* base = nullptr;
  for (const CarriedOn& c : report.carried_on) {
    if (c.size != size || c.mode != mode) continue;
    rate.ticks.push_back(c.ranks), share.ticks.push_back(c.ranks);
    if (!c.impossible.empty()) {
      rows.push_back(reason_row(size, c.ranks, head.size() - 2, "not possible: " + c.impossible));
      continue;
    }
    if (!base) base = &c;
    const StepTime& t = c.predicted.step;
    const auto add = [&](PlotLine& line, double y, const char* what) {
      line.points.push_back(
          {static_cast<double>(c.ranks), y, y, y,
           fmt::format("{} ranks, {}: {} {}", c.ranks, mesh_name(c.mesh), short_number(y), what)});
    };
    add(tokens, c.tokens_per_second(), "tokens/s");
    add(ideal, base->tokens_per_second() * c.ranks / base->ranks, "");
    add(efficiency, 100 * c.efficiency, "% efficient");
    add(mfu, 100 * c.mfu, "% MFU");
    std::vector<double> seconds{t.dp, t.tp, t.cp, t.pp, t.compute, t.optimizer};
    std::vector<std::string> cells{escape_xml(size),        std::to_string(c.ranks),
                                   mesh_name(c.mesh),       fmt::format("{} x {}", c.global_batch, c.seq_len),
                                   seconds_text(t.total()), short_number(c.tokens_per_second()),
                                   percent(c.efficiency),   percent(c.mfu)};
    for (double& part : seconds) part /= t.total(), cells.push_back(percent(part));
    cells.push_back(memory_text(c.predicted.memory_most));
    parts.labels.push_back(std::to_string(c.ranks));
    parts.shares.push_back(std::move(seconds));
    rows.push_back(row(cells));
  }
  rate.lines = {tokens, ideal}, share.lines = {efficiency, mfu};
  return fmt::format("<h2>{}: {} scaling, predicted</h2>\n", escape_xml(size), mode) +
         (base ? legend("Rates:", {"tokens/s, efficiency", "MFU"}) + legend("Parts of a step:", parts.parts) +
                     "<div class=\"plots\">\n" + svg(rate) + svg(share) + svg(parts) + "</div>\n"
               : "") +
         table(head, rows);
}

}  // namespace transmamba
