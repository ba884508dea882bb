#include "tools/scale/plot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <regex>

namespace transmamba {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

int count(const std::string& text, const std::string& what) {
  int found = 0;
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++found;
  return found;
}

/// Every number of these attributes lies on the paper.
void expect_inside(const std::string& svg) {
  const std::regex attribute("(x|y|x1|y1|x2|y2|cx|cy)=\"([^\"]*)\"");
  for (std::sregex_iterator at(svg.begin(), svg.end(), attribute), end; at != end; ++at) {
    const double value = std::stod((*at)[2]);
    const double most = std::string((*at)[1]).find('x') != std::string::npos ? 560 : 330;
    EXPECT_TRUE(std::isfinite(value) && value >= 0 && value <= most) << at->str();
  }
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
}

Plot plot(bool log_y, double scale) {
  Plot p;
  p.title = "a & b", p.x_label = "ranks", p.log_y = log_y, p.ticks = {1, 2, 4, 4096};
  p.lines.push_back(
      {0,
       LineStyle::measured,
       0,
       {{1, scale, 0.5 * scale, 2 * scale, "<one>"}, {4096, 900 * scale, 900 * scale, 900 * scale, ""}}});
  p.lines.push_back({7,
                     LineStyle::ideal,
                     0,
                     {{1, scale, scale, scale, ""}, {4096, 4096 * scale, 4096 * scale, 4096 * scale, ""}}});
  return p;
}

TEST(Plot, HasAMarkForEachPointInsideItsFrame) {
  for (const bool log_y : {true, false})
    for (const double scale : {1e-7, 1.0, 37.0, 1e9}) {
      const std::string text = svg(plot(log_y, scale));
      EXPECT_EQ(count(text, "<circle"), 2) << "the ideal has none";
      EXPECT_EQ(count(text, "<polyline"), 2);
      EXPECT_EQ(count(text, "class=\"whisker\""), 3);
      EXPECT_THAT(text, HasSubstr("&lt;one&gt;"));
      EXPECT_THAT(text, HasSubstr("a &amp; b"));
      expect_inside(text);
    }
}

TEST(Plot, LeavesOutWhatHasNoPlace) {
  Plot p = plot(true, 1);
  p.lines[0].points.push_back({2, std::numeric_limits<double>::quiet_NaN(), 0, 0, ""});
  p.lines[0].points.push_back({2, -1, -1, -1, ""});
  p.lines[0].points.push_back({0, 3, 3, 3, ""});
  const std::string text = svg(p);
  EXPECT_EQ(count(text, "<circle"), 2);
  expect_inside(text);
}

TEST(Plot, OfOnePointOrNoneIsAPlot) {
  Plot p;
  p.title = "t", p.ticks = {3};
  expect_inside(svg(p));
  p.log_y = true;
  expect_inside(svg(p));
  p.lines.push_back({0, LineStyle::measured, 0, {{3, 5, 5, 5, ""}}});
  EXPECT_EQ(count(svg(p), "<circle"), 1);
  expect_inside(svg(p));
}

TEST(Plot, HigherNumbersStandHigher) {
  for (const bool log_y : {true, false}) {
    const std::string text = svg(plot(log_y, 10));
    const std::regex circle("<circle cx=\"([0-9.]+)\" cy=\"([0-9.]+)\"");
    std::sregex_iterator at(text.begin(), text.end(), circle);
    const double x1 = std::stod((*at)[1]), y1 = std::stod((*at)[2]);
    ++at;
    EXPECT_LT(x1, std::stod((*at)[1]));
    EXPECT_GT(y1, std::stod((*at)[2]));
  }
}

TEST(BarPlot, SharesFillTheirBars) {
  const std::string text = svg(BarPlot{"t", "ranks", {"1", "2"}, {"a", "b"}, {{0.25, 0.75}, {0, 1}}});
  EXPECT_EQ(count(text, "<rect"), 3) << "nothing is drawn of a part that takes no time";
  EXPECT_THAT(text, HasSubstr("2: b 100.0%"));
  expect_inside(text);
}

TEST(Plot, NumbersAreShort) {
  EXPECT_EQ(short_number(0), "0");
  EXPECT_EQ(short_number(12300), "12.3k");
  EXPECT_EQ(short_number(999.9), "1k");
  EXPECT_EQ(short_number(1.5e8), "150M");
}

}  // namespace
}  // namespace transmamba
