// Pieces of the page that tools/scale/page.cpp puts together.
#pragma once

#include "tools/scale/plot.h"
#include "tools/scale/report.h"

namespace transmamba {

/// Plots and table of the measured runs of a size and a mode; empty where there are none.
std::string measured_section(const ScaleReport& report, const std::string& size, const std::string& mode);
/// The same of the described cluster.
std::string carried_section(const ScaleReport& report, const std::string& size, const std::string& mode);

/// Coloured names, in the order of colours, after a word about them.
std::string legend(const std::string& about, const std::vector<std::string>& names);
std::string table(const std::vector<std::string>& head, const std::vector<std::string>& rows);
/// Cells of a row, as HTML.
std::string row(const std::vector<std::string>& cells);

}  // namespace transmamba
