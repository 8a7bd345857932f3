// Small text tables: the first column left, the others right.
#pragma once

#include <string>
#include <vector>

namespace shoal::tool {

class Table {
public:
    explicit Table(std::vector<std::string> header);
    // Rows shorter than the header are filled with empty cells.
    void add(std::vector<std::string> cells);
    std::string text() const;

private:
    std::vector<std::vector<std::string>> rows_;
};

double median(std::vector<double> values);   // 0 when empty
double minimum(const std::vector<double>& values);
// The smallest value that at least `part` (0 .. 1) of the values do not exceed.
double quantile(std::vector<double> values, double part);

}  // namespace shoal::tool
