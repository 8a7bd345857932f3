#include "bench/gpu/report.hpp"

#include <algorithm>
#include <cmath>

namespace shoal::gpu {
namespace {

double quantile(const std::vector<double>& sorted, double q) {
    const double at = q * static_cast<double>(sorted.size() - 1);
    const auto below = static_cast<size_t>(at);
    const size_t above = std::min(below + 1, sorted.size() - 1);
    return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        if (static_cast<unsigned char>(c) < 0x20) {
            char code[8];
            std::snprintf(code, sizeof(code), "\\u%04x", static_cast<unsigned>(c));
            out += code;
        } else {
            out += c;
        }
    }
    return out + "\"";
}

// JSON has no infinity and no NaN.
std::string json_number(double value) {
    if (!std::isfinite(value)) return "null";
    char text[32];
    std::snprintf(text, sizeof(text), "%.6g", value);
    return text;
}

std::string json_object(const Params& params) {
    std::string out = "{";
    for (const auto& [name, value] : params) {
        out += (out.size() > 1 ? ", " : "") + quoted(name) + ": " + quoted(value);
    }
    return out + "}";
}

std::string json_row(const Row& row) {
    std::string out = "{\"what\": " + quoted(row.what) +
                      ", \"params\": " + json_object(row.params) +
                      ", \"median\": " + json_number(row.value.median) +
                      ", \"p10\": " + json_number(row.value.p10) +
                      ", \"p90\": " + json_number(row.value.p90) +
                      ", \"count\": " + std::to_string(row.value.count) +
                      ", \"unit\": " + quoted(row.unit);
    if (row.percent >= 0) {
        out += ", \"percent\": " + json_number(row.percent) +
               ", \"percent_of\": " + quoted(row.percent_of);
    }
    if (!row.note.empty()) out += ", \"note\": " + quoted(row.note);
    return out + "}";
}

// Elements on lines of their own.
template <typename Items, typename Text>
std::string json_list(const Items& items, const std::string& indent, Text text) {
    std::string out = "[";
    for (const auto& item : items) {
        out += (out.size() > 1 ? "," : "") + ("\n" + indent + "  ") + text(item);
    }
    return out + (out.size() > 1 ? "\n" + indent + "]" : "]");
}

std::string json_check(const std::pair<std::string, std::string>& check, bool passed) {
    return "{\"what\": " + quoted(check.first) + ", \"passed\": " + (passed ? "true" : "false") +
           ", \"detail\": " + quoted(check.second) + "}";
}

}  // namespace

Summary summarise(std::vector<double> samples) {
    Summary summary;
    if (samples.empty()) return summary;
    std::sort(samples.begin(), samples.end());
    summary.median = quantile(samples, 0.5);
    summary.p10 = quantile(samples, 0.1);
    summary.p90 = quantile(samples, 0.9);
    summary.count = static_cast<uint32_t>(samples.size());
    return summary;
}

Summary rate_of(const Summary& time, double amount) {
    const auto rate = [&](double t) { return t > 0 ? amount / t : 0.0; };
    return {rate(time.median), rate(time.p90), rate(time.p10), time.count};
}

bool wants_another(const Progress& progress) {
    if (progress.small) return progress.done < 1;
    if (progress.done == 0) return progress.part_s < 2.5 * progress.budget_s;
    if (progress.done < kRepetitionsLate) return true;
    if (progress.done < kRepetitionsMin) return progress.part_s < 1.3 * progress.budget_s;
    if (progress.done >= kRepetitionsWanted) return false;
    return progress.case_s < 0.2 && progress.part_s < progress.budget_s;
}

std::string bytes_text(uint64_t bytes) {
    static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB"};
    size_t unit = 0;
    while (unit < 3 && bytes >= 1024 && bytes % 1024 == 0) bytes /= 1024, ++unit;
    return std::to_string(bytes) + " " + kUnits[unit];
}

std::string number_text(double value) {
    char text[32];
    const double size = std::abs(value);
    const int digits = size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : 3;
    std::snprintf(text, sizeof(text), "%.*f", digits, value);
    return text;
}

std::string table_line(const Row& row) {
    std::string name = row.what;
    for (const auto& [key, value] : row.params) name += "  " + key + " " + value;
    name.resize(std::max<size_t>(name.size() + 1, 64), ' ');
    char figures[128];
    std::snprintf(figures, sizeof(figures), "%10s %-6s [%s .. %s]",
                  number_text(row.value.median).c_str(), row.unit.c_str(),
                  number_text(row.value.p10).c_str(), number_text(row.value.p90).c_str());
    std::string line = name + figures;
    if (row.percent >= 0) line += "  " + number_text(row.percent) + " % of " + row.percent_of;
    if (row.value.count < kRepetitionsMin) {
        line += "  (" + std::to_string(row.value.count) + " runs)";
    }
    if (!row.note.empty()) line += "  " + row.note;
    return line;
}

Report::PartRows& Report::part() {
    if (parts_.empty()) begin_part("run");
    return parts_.back();
}

void Report::begin_part(const std::string& name) {
    parts_.emplace_back();
    parts_.back().name = name;
    if (terminal_ != nullptr) std::fprintf(terminal_, "\n== %s\n", name.c_str());
}

void Report::end_part(double seconds, double budget_s) {
    part().seconds = seconds;
    if (terminal_ == nullptr) return;
    std::fprintf(terminal_, "%s: %s s of %s s, %zu figures, %zu checks passed, %zu failed\n",
                 part().name.c_str(), number_text(seconds).c_str(), number_text(budget_s).c_str(),
                 part().rows.size(), part().passed.size(), part().failed.size());
    std::fflush(terminal_);
}

void Report::add(Row row) {
    if (terminal_ != nullptr) std::fprintf(terminal_, "%s\n", table_line(row).c_str());
    part().rows.push_back(std::move(row));
}

void Report::check(const std::string& what, bool passed, const std::string& detail) {
    ++check_count_;
    if (!passed) ++failed_count_;
    (passed ? part().passed : part().failed).emplace_back(what, detail);
    if (terminal_ != nullptr && !passed) {
        std::fprintf(terminal_, "CHECK FAILED  %s: %s\n", what.c_str(), detail.c_str());
    }
}

void Report::note(const std::string& text) {
    part().notes.push_back(text);
    if (terminal_ != nullptr) std::fprintf(terminal_, "note: %s\n", text.c_str());
}

void Report::fact(const std::string& name, const std::string& value) {
    facts_.emplace_back(name, value);
    if (terminal_ != nullptr) std::fprintf(terminal_, "%-22s %s\n", name.c_str(), value.c_str());
}

std::string Report::json() const {
    std::string out = "{\n  \"facts\": " + json_object(facts_) +
                      ",\n  \"checks\": " + std::to_string(check_count_) +
                      ",\n  \"checks_failed\": " + std::to_string(failed_count_) +
                      ",\n  \"parts\": ";
    out += json_list(parts_, "  ", [](const PartRows& part) {
        std::vector<std::string> checks;
        for (const auto& check : part.failed) checks.push_back(json_check(check, false));
        for (const auto& check : part.passed) checks.push_back(json_check(check, true));
        return "{\"name\": " + quoted(part.name) + ", \"seconds\": " + json_number(part.seconds) +
               ",\n     \"rows\": " + json_list(part.rows, "     ", json_row) +
               ",\n     \"checks\": " +
               json_list(checks, "     ", [](const std::string& text) { return text; }) +
               ",\n     \"notes\": " + json_list(part.notes, "     ", quoted) + "}";
    });
    return out + "\n}\n";
}

Status Report::write_json(const std::string& path) const {
    std::FILE* file = std::fopen(path.c_str(), "w");
    if (file == nullptr) {
        return Status::error(StatusCode::not_found, "--json " + path + ": cannot be written");
    }
    const std::string text = json();
    const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
    if (std::fclose(file) != 0 || !written) {
        return Status::error(StatusCode::unavailable, "--json " + path + ": was not written whole");
    }
    return Status::ok();
}

}  // namespace shoal::gpu
