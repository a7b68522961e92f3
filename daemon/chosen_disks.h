// The disks that a command works on which reads them itself: no daemon is
// asked, and a running one is not disturbed.
//
// Blocks.
#pragma once

#include <string>
#include <vector>

#include "daemon/command_line.h"
#include "daemon/load_config.h"
#include "pkg/base/status.h"
#include "pkg/io/dir.h"
#include "pkg/manager/disk_list.h"

namespace bim::daemon {

// Those that were named, else those that the daemon of the configuration would
// use. INVALID_ARGUMENT: what LoadConfig says. FAILED_PRECONDITION: the list in
// state_dir is damaged, or there are no disks.
base::Result<std::vector<manager::ListedDisk>> ChooseDisks(
    const DiskChoice& choice, const Environment& environment);
// The first half of it; paths become absolute.
std::vector<manager::ListedDisk> NamedDisks(
    const std::vector<std::string>& paths);
// The second; there may be none.
base::Result<std::vector<manager::ListedDisk>> ConfiguredDisks(
    const Config& config);

struct OpenDisk {
  io::Dir root;
  std::string uuid;
};
// NOT_FOUND: no directory, or no disk. FAILED_PRECONDITION: another disk than
// the list says. DATA_LOSS: its identity is damaged.
base::Result<OpenDisk> Open(const manager::ListedDisk& disk);

}  // namespace bim::daemon
