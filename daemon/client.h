// The client commands of `bim`: one call to the daemon each, printed for people
// or as JSON on standard output. None reads the daemon's configuration.
#pragma once

#include "daemon/command_line.h"
#include "daemon/connection.h"

namespace bim::daemon {

// Blocks. Precondition: one of the commands that need no more than a daemon
// (Image*, Disk*, Limits*, Version).
CommandEnd RunClientCommand(const Invocation& invocation);

}  // namespace bim::daemon
