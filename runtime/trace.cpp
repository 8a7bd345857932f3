#include "runtime/trace.hpp"

namespace shoal {

const char* trace_stage_name(TraceStage stage) {
    switch (stage) {
        case TraceStage::step: return "step";
        case TraceStage::append: return "append";
        case TraceStage::score: return "score";
        case TraceStage::select: return "select";
        case TraceStage::attend: return "attend";
        case TraceStage::exact: return "exact";
        case TraceStage::fetch: return "fetch";
        case TraceStage::ahead: return "ahead";
    }
    return "unknown";
}

}  // namespace shoal
