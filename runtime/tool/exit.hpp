// How the tool ends: exit codes, one line of error, Ctrl-C.
#pragma once

#include <string>

#include "shoal/status.hpp"

namespace shoal::tool {

// Documented in `shoal --help`; scripts rely on them.
enum ExitCode : int {
    kExitOk = 0,
    kExitFailure = 1,       // the world failed: a defect, a machine that could not do it
    kExitUsage = 2,         // bad flag, file, model or configuration: fix the input
    kExitInterrupted = 130  // Ctrl-C; what was measured so far was printed
};

// Prints "shoal: <message>" and returns the exit code that fits the status.
int report_error(const Status& status);

// Returns from a command with the exit code of a Status that is not ok.
#define SHOAL_TOOL_TRY(expression)                                                     \
    do {                                                                               \
        const ::shoal::Status shoal_tool_status = (expression);                        \
        if (!shoal_tool_status.is_ok()) return ::shoal::tool::report_error(shoal_tool_status); \
    } while (0)

Status input_error(std::string message);

// From here on the first Ctrl-C only sets interrupted(), the second ends the process.
void catch_interrupt();
bool interrupted();
// The status with which an interrupted command stops early.
Status interrupted_status();
bool is_interrupted_status(const Status& status);

// What must be written to the terminal before the process is killed by a second Ctrl-C (a scroll
// region outlives the program). A literal, or null.
void set_terminal_reset(const char* sequence);

}  // namespace shoal::tool
