// The listening sockets of the daemon: opened here, or taken over from the
// daemon before it, so that no client sees them closed.
#pragma once

#include <string>
#include <vector>

#include "daemon/config.h"
#include "daemon/state_dir.h"
#include "pkg/base/status.h"
#include "pkg/base/unique_fd.h"
#include "pkg/handover/owner.h"

namespace bim::daemon {

struct Listeners {
  std::vector<base::UniqueFd> api;
  base::UniqueFd data;  // empty: off
  base::UniqueFd sync;  // Longhorn's file service; empty: off
  uint16_t sync_port = 0;
  Endpoints bound;
  // Duplicates of all of them, by what they were configured as, for a
  // successor.
  std::vector<handover::ListeningSocket> kept;
};

// Blocks. One of `inherited` that was configured alike is used instead of a
// new one; the others are closed.
base::Result<Listeners> OpenListeners(
    const Config& config, std::vector<handover::ListeningSocket> inherited);

}  // namespace bim::daemon
