#include "tools/scale/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace transmamba {
namespace {

constexpr double kWidth = 560, kHeight = 330;
constexpr double kLeft = 64, kRight = 540, kTop = 36, kBottom = 284;

std::string text(double x, double y, const char* anchor, const char* style, const std::string& what) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" class=\"{}\">{}</text>\n", x, y,
                     anchor, style, escape_xml(what));
}

std::string segment(double x1, double y1, double x2, double y2, const char* style) {
  return fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" class=\"{}\"/>\n", x1, y1,
                     x2, y2, style);
}

std::string begin(const std::string& title, const std::string& x_label) {
  return fmt::format(
             "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\" "
             "xmlns=\"http://www.w3.org/2000/svg\">\n",
             kWidth, kHeight, escape_xml(title)) +
         text(kLeft, 20, "start", "title", title) +
         text((kLeft + kRight) / 2, kHeight - 8, "middle", "label", x_label);
}

/// 1, 2, 5, 10, .. around all of [low, high]; powers of ten alone where that would be too many.
std::vector<double> log_ticks(double low, double high) {
  const bool tens = std::log10(high / low) > 3.5;
  std::vector<double> ticks;
  for (int exponent = static_cast<int>(std::floor(std::log10(low))) - 1; exponent < 40; ++exponent)
    for (const double factor : {1.0, 2.0, 5.0}) {
      if (tens && factor != 1) continue;
      const double tick = factor * std::pow(10.0, exponent);
      if (tick <= low * (1 + 1e-9)) ticks.clear();
      ticks.push_back(tick);
      if (tick >= high * (1 - 1e-9) && ticks.size() > 1) return ticks;
    }
  return ticks;
}

std::vector<double> linear_ticks(double high) {
  const double rough = high / 4, ten = std::pow(10.0, std::floor(std::log10(rough)));
  double step = 10 * ten;
  for (const double factor : {5.0, 2.5, 2.0, 1.0})
    if (factor * ten >= rough * (1 - 1e-9)) step = factor * ten;
  std::vector<double> ticks{0};
  while (ticks.back() < high * (1 - 1e-9)) ticks.push_back(step * static_cast<double>(ticks.size()));
  return ticks;
}

/// Where numbers lie on the paper.
class Axes {
 public:
  explicit Axes(const Plot& plot)
      : log_y_(plot.log_y), x_low_(plot.ticks.front()), x_high_(plot.ticks.back()) {
    double low = 0, high = plot.log_y ? 0 : plot.y_least_top;
    for (const PlotLine& line : plot.lines)
      for (const PlotPoint& p : line.points) {
        if (!shows(p)) continue;
        const double least = p.low > 0 ? std::min(p.low, p.y) : p.y;
        low = low == 0 ? least : std::min(low, least);
        high = std::max({high, p.y, p.high});
      }
    if (high <= 0) high = 1;
    y_ticks_ = log_y_ ? log_ticks(low > 0 ? low : high / 10, high) : linear_ticks(high);
  }
  bool shows(const PlotPoint& p) const {
    return std::isfinite(p.x) && std::isfinite(p.y) && std::isfinite(p.low) && std::isfinite(p.high) &&
           p.x >= x_low_ && p.x <= x_high_ && (log_y_ ? p.y > 0 : p.y >= 0);
  }
  double x(double value) const {
    constexpr double kInset = 24;  // points do not stand on the frame
    if (x_high_ <= x_low_) return (kLeft + kRight) / 2;
    return kLeft + kInset +
           (kRight - kLeft - 2 * kInset) * std::log2(value / x_low_) / std::log2(x_high_ / x_low_);
  }
  double y(double value) const {
    const double low = y_ticks_.front(), high = y_ticks_.back();
    const double part =
        log_y_ ? std::log(std::max(value, low) / low) / std::log(high / low) : (value - low) / (high - low);
    return kBottom - (kBottom - kTop) * std::clamp(part, 0.0, 1.0);
  }
  const std::vector<double>& y_ticks() const { return y_ticks_; }

 private:
  bool log_y_;
  double x_low_, x_high_;
  std::vector<double> y_ticks_;
};

std::string draw_line(const Axes& axes, const PlotLine& line) {
  constexpr std::array<const char*, 3> kStyles{"measured", "predicted", "ideal"};
  std::string path, marks;
  for (const PlotPoint& p : line.points) {
    if (!axes.shows(p)) continue;
    const double x = axes.x(p.x) + line.shift, y = axes.y(p.y);
    path += fmt::format("{}{:.1f},{:.1f}", path.empty() ? "" : " ", x, y);
    if (line.style == LineStyle::ideal) continue;
    if (p.high > p.low) {
      const double top = axes.y(p.high), bottom = axes.y(p.low);
      marks += segment(x, top, x, bottom, "whisker") + segment(x - 4, top, x + 4, top, "whisker") +
               segment(x - 4, bottom, x + 4, bottom, "whisker");
    }
    marks += fmt::format(
        "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{}\" class=\"point\"><title>{}</title></circle>\n", x, y,
        line.style == LineStyle::measured ? "4" : "2.5", escape_xml(p.note));
  }
  return fmt::format("<g class=\"c{} {}\">\n<polyline points=\"{}\"/>\n{}</g>\n", line.color % kPlotColors,
                     kStyles[static_cast<std::size_t>(line.style)], path, marks);
}

}  // namespace

std::string svg(const Plot& plot) {
  const Axes axes(plot);
  std::string out = begin(plot.title, plot.x_label);
  for (const double tick : axes.y_ticks())
    out += segment(kLeft, axes.y(tick), kRight, axes.y(tick), "grid") +
           text(kLeft - 6, axes.y(tick) + 4, "end", "tick", short_number(tick) + plot.unit);
  double last = -kWidth;
  for (const double tick : plot.ticks) {
    const double x = axes.x(tick);
    out += segment(x, kBottom, x, kBottom + 4, "axis");
    if (x - last < 30) continue;  // numbers would touch
    out += text(x, kBottom + 18, "middle", "tick", fmt::format("{:g}", tick));
    last = x;
  }
  out += segment(kLeft, kBottom, kRight, kBottom, "axis");
  for (const LineStyle style :
       {LineStyle::ideal, LineStyle::predicted, LineStyle::measured})  // the last on top
    for (const PlotLine& line : plot.lines)
      if (line.style == style) out += draw_line(axes, line);
  return out + "</svg>\n";
}

std::string svg(const BarPlot& plot) {
  std::string out = begin(plot.title, plot.x_label);
  const auto y = [](double share) { return kBottom - (kBottom - kTop) * share; };
  for (const double tick : {0.0, 0.25, 0.5, 0.75, 1.0})
    out += segment(kLeft, y(tick), kRight, y(tick), "grid") +
           text(kLeft - 6, y(tick) + 4, "end", "tick", fmt::format("{:g}%", 100 * tick));
  const double each = (kRight - kLeft) / static_cast<double>(std::max<std::size_t>(plot.labels.size(), 1));
  const double width = std::min(0.7 * each, 48.0);
  for (std::size_t i = 0; i < plot.labels.size(); ++i) {
    const double middle = kLeft + each * (static_cast<double>(i) + 0.5);
    double below = 0;
    for (std::size_t k = plot.shares[i].size(); k-- > 0;) {
      const double share =
          std::isfinite(plot.shares[i][k]) ? std::clamp(plot.shares[i][k], 0.0, 1.0 - below) : 0;
      if (share <= 0) continue;
      out += fmt::format(
          "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" class=\"bar c{}\">"
          "<title>{}: {} {:.1f}%</title></rect>\n",
          middle - width / 2, y(below + share), width, y(below) - y(below + share), k % kPlotColors,
          escape_xml(plot.labels[i]), escape_xml(plot.parts[k]), 100 * share);
      below += share;
    }
    out += text(middle, kBottom + 18, "middle", "tick", plot.labels[i]);
  }
  return out + segment(kLeft, kBottom, kRight, kBottom, "axis") + "</svg>\n";
}

std::string short_number(double x) {
  constexpr std::array<const char*, 5> kUnits{"", "k", "M", "G", "T"};
  std::size_t unit = 0;
  while (std::abs(x) >= 999.5 && unit + 1 < kUnits.size()) x /= 1000, ++unit;
  return fmt::format("{:.3g}{}", x, kUnits[unit]);
}

std::string escape_xml(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else if (static_cast<unsigned char>(c) >= ' ' || c == '\n' ||
             c == '\t')  // XML has no other control characters
      out += c;
  }
  return out;
}

}  // namespace transmamba
