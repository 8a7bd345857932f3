// A strict reader of the text form of OpenMetrics 1.0, as far as it can occur here: each family
// once, its metadata in front of its samples, suffixes by type, the unit at the end of the name, no
// sample twice, no blank line, one end mark.
#pragma once

#include <map>
#include <regex>
#include <sstream>
#include <string>

namespace shoal::testing {

class OpenMetrics {
public:
    // "" or what is wrong.
    std::string read(const std::string& text) {
        if (!text.ends_with("\n# EOF\n")) return "does not end with # EOF";
        std::istringstream lines(text.substr(0, text.size() - 6));
        for (std::string line; std::getline(lines, line);) {
            const std::string error = line.starts_with("# ") ? metadata(line) : sample(line);
            if (!error.empty()) return error + ": " + line;
        }
        return "";
    }
    std::map<std::string, double> samples;  // by name with labels

private:
    struct Family {
        std::string type;
        std::string unit;
        bool has_help = false;
        bool has_samples = false;
    };

    std::string metadata(const std::string& line) {
        static const std::regex form("# (TYPE|UNIT|HELP) ([a-z][a-z0-9_]*) (.+)");
        std::smatch match;
        if (!std::regex_match(line, match, form)) return "no metadata";
        const std::string name = match[2];
        if (match[1] == "TYPE") {
            if (match[3] != "counter" && match[3] != "gauge" && match[3] != "info") {
                return "unknown type";
            }
            current_ = name;
            return families_.emplace(name, Family{match[3], "", false, false}).second
                       ? ""
                       : "family twice";
        }
        if (name != current_) return "metadata of another family";
        Family& family = families_[name];
        if (family.has_samples) return "metadata behind its samples";
        if (match[1] == "HELP") {
            if (family.has_help) return "help twice";
            family.has_help = true;
            return "";
        }
        if (!family.unit.empty()) return "unit twice";
        family.unit = match[3];
        return name.ends_with("_" + family.unit) ? "" : "the name does not end with its unit";
    }

    std::string sample(const std::string& line) {
        static const std::regex form(
            "([a-z][a-z0-9_]*)(\\{[a-z_]+=\"[^\"\\\\]*\"(,[a-z_]+=\"[^\"\\\\]*\")*\\})? "
            "(-?[0-9]+(\\.[0-9]+)?(e[-+]?[0-9]+)?|NaN)");
        std::smatch match;
        if (!std::regex_match(line, match, form)) return "no sample";
        if (current_.empty()) return "a sample of no family";
        Family& family = families_[current_];
        family.has_samples = true;
        const std::string suffix = family.type == "counter" ? "_total"
                                   : family.type == "info"  ? "_info"
                                                            : "";
        if (match[1] != current_ + suffix) return "a sample of no family above it";
        const double value = std::stod(match[4]);
        if (family.type == "counter" && !(value >= 0)) return "a counter that is no count";
        const bool first = samples.emplace(match[1].str() + match[2].str(), value).second;
        return first ? "" : "sample twice";
    }

    std::map<std::string, Family> families_;
    std::string current_;
};

}  // namespace shoal::testing
