// The commands that read the disks of this host themselves, without a daemon:
// manager list and cleanup, history, prune, upgrade check, disk migrate.
#pragma once

#include "daemon/command_line.h"
#include "daemon/connection.h"
#include "daemon/load_config.h"

namespace bim::daemon {

bool IsLocalCommand(const Command& command);

// Blocks; prints the result on standard output. Precondition: IsLocalCommand.
// A disk that fails does not keep the others from being worked on: the end is
// the first failure, with a line for each.
CommandEnd RunLocalCommand(const Invocation& invocation,
                           const Environment& environment);

}  // namespace bim::daemon
