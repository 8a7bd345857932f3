// A store of a session and a saved sequence: what of the session goes into the file, and when what
// comes out of one becomes part of the session.
#pragma once

#include <string>

#include "runtime/saved_sequence.hpp"
#include "runtime/session_state.hpp"
#include "runtime/step.hpp"

namespace shoal {

// No step is open. `read`: as SaveInput::read.
Status save_store(const SessionState& state, const Store& store, const SequenceNotes& notes,
                  const std::string& path, decltype(SaveInput::read) read);

// Fills `store`, which is empty and known to nobody. On failure it is empty again and the rest of
// the session as it was. `notes`: filled in when not null.
Status load_store(SessionState& state, Step& step, Store& store, const std::string& path,
                  SequenceNotes* notes);

}  // namespace shoal
