// The daemon: everything wired together, from the configuration to the exit.
#pragma once

#include <functional>

#include "daemon/load_config.h"
#include "pkg/base/status.h"

namespace bim::daemon {

// Blocks until SIGTERM or SIGINT (a second one ends the process at once, with
// code 1; nothing on the disks needs the rest of the way), SIGHUP is logged and
// ignored. Listeners are open before a disk is taken, so that a second daemon
// by mistake changes nothing. systemd is told when it is ready and stopping.
//
// What fails before it serves is returned: state_dir in use, port in use, and
// so on. OK after a graceful stop. Call once per process, on the main thread,
// before any other thread is started.
// `serving`: called when it serves and owns what it took over. May be null.
base::Status Serve(const EffectiveConfig& effective,
                   const std::function<void()>& serving);

}  // namespace bim::daemon
