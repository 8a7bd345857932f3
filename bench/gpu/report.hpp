// Figures, checks and notes of a run: a table on the terminal as they come, JSON in a file.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "shoal/status.hpp"

namespace shoal::gpu {

// Of repeated measurements of one thing.
struct Summary {
    double median = 0;
    double p10 = 0;
    double p90 = 0;
    uint32_t count = 0;
};
Summary summarise(std::vector<double> samples);
// The same samples as a rate: amount / time. p10 of the rate comes from p90 of the time.
Summary rate_of(const Summary& time, double amount);

// Measurements below which a median is marked as made of few.
inline constexpr uint32_t kRepetitionsMin = 20;

// How often one case is repeated. A part that has spent its budget stops at kRepetitionsMin, then
// at kRepetitionsLate, and in the end leaves cases out; the report says so.
inline constexpr uint32_t kRepetitionsWanted = 40;
inline constexpr uint32_t kRepetitionsLate = 5;
struct Progress {
    uint32_t done = 0;      // repetitions of this case
    double case_s = 0;      // spent on this case
    double part_s = 0;      // spent on the part, this case included
    double budget_s = 0;    // of the part
    bool small = false;
};
bool wants_another(const Progress& progress);

using Params = std::vector<std::pair<std::string, std::string>>;

struct Row {
    std::string what;        // "sm gather"
    Params params;           // {{"piece", "4096"}, {"ctas", "16"}}
    Summary value;
    std::string unit;        // "GB/s", "us"
    double percent = -1;     // of `percent_of`; below 0: none
    std::string percent_of;
    std::string note;
};

class Report {
public:
    // Rows are printed to `terminal` as they come; null: not at all.
    explicit Report(std::FILE* terminal) : terminal_(terminal) {}

    void begin_part(const std::string& name);
    void end_part(double seconds, double budget_s);
    void add(Row row);
    // One comparison with the reference. `detail` says by how much it fails or holds.
    void check(const std::string& what, bool passed, const std::string& detail);
    // Something a reader of the figures must know: a size that shrank, a case left out.
    void note(const std::string& text);
    // A fact of the machine: GPU name, driver, link, clocks.
    void fact(const std::string& name, const std::string& value);

    uint32_t failed_count() const { return failed_count_; }
    uint32_t check_count() const { return check_count_; }
    std::string json() const;
    Status write_json(const std::string& path) const;

private:
    struct PartRows {
        std::string name;
        double seconds = -1;
        std::vector<Row> rows;
        std::vector<std::pair<std::string, std::string>> failed;  // what, detail
        std::vector<std::pair<std::string, std::string>> passed;
        std::vector<std::string> notes;
    };
    PartRows& part();

    std::FILE* terminal_;
    std::vector<PartRows> parts_;
    Params facts_;
    uint32_t failed_count_ = 0;
    uint32_t check_count_ = 0;
};

// "4 KiB", "1 MiB", "640 B".
std::string bytes_text(uint64_t bytes);
// %.*g without an exponent for the sizes met here.
std::string number_text(double value);
std::string table_line(const Row& row);

}  // namespace shoal::gpu
