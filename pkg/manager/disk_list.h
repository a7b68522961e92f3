// Which disks a node has: those of its configuration and those that were added
// while it ran, <state_dir>/disks.json. Reads only.
#pragma once

#include <string>
#include <vector>

#include "pkg/base/status.h"
#include "pkg/store/layout.h"

namespace bim::manager {

inline constexpr char kDisksFile[] = "disks.json";

struct ListedDisk {
  std::string path;  // absolute
  std::string uuid;  // that it must have; empty: any
};
// A removal that a disk has not seen yet.
struct MissedRemoval {
  std::string disk_uuid;
  store::ImageKey key;
};
struct DiskList {
  std::vector<ListedDisk> disks;
  std::vector<MissedRemoval> removals;
};

// "/a/../b/" is "/b".
std::string NormalPath(const std::string& path);

// Blocks. `state_dir` empty, or without a list: only the configured ones.
// INVALID_ARGUMENT: a configured path is not absolute. FAILED_PRECONDITION: the
// list is damaged.
base::Result<DiskList> LoadDiskList(const std::string& state_dir,
                                    const std::vector<std::string>& configured);

}  // namespace bim::manager
