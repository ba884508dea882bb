// Plots as SVG, for a page that needs nothing else. Colours are the classes c0 .. c5 of the page's style.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace transmamba {

constexpr int kPlotColors = 6;

struct PlotPoint {
  double x = 0, y = 0;
  double low = 0, high = 0;  ///< a whisker, where they differ
  std::string note;          ///< shown when pointed at
};

enum class LineStyle : std::uint8_t { measured, predicted, ideal };

struct PlotLine {
  int color = 0;
  LineStyle style = LineStyle::measured;
  double shift = 0;  ///< to the right, so that points of several lines do not hide each other
  std::vector<PlotPoint> points;
};

struct Plot {
  std::string title, x_label;
  bool log_y = false;         ///< points of 0 or less are then left out; else the axis starts at 0
  double y_least_top = 0;     ///< the axis of a plot that is not logarithmic goes at least as far
  std::string unit;           ///< appended to numbers on the axis: "%"
  std::vector<double> ticks;  ///< on the x axis, which is logarithmic; ascending, above 0
  std::vector<PlotLine> lines;
};

/// Points that are not finite are left out.
std::string svg(const Plot& plot);

/// A bar for each label, made of parts that share it, the last lowest.
struct BarPlot {
  std::string title, x_label;
  std::vector<std::string> labels;
  std::vector<std::string> parts;           ///< names, in the colours c0, c1, ..
  std::vector<std::vector<double>> shares;  ///< [label][part], which add up to 1 at most
};
std::string svg(const BarPlot& plot);

/// 12300 as "12.3k".
std::string short_number(double x);

/// With &, <, > and quotes as XML wants them.
std::string escape_xml(const std::string& text);

}  // namespace transmamba
