// What `bim disk migrate` prints. Pure.
#pragma once

#include <string>
#include <vector>

#include "pkg/base/status.h"
#include "pkg/store/migrate.h"

namespace bim::daemon {

// Of one disk; nothing happened with a status that is not OK.
struct DiskMigrated {
  std::string path;
  std::string uuid;
  store::Migration migration;
  base::Status status;
};
std::string RenderMigrated(const std::vector<DiskMigrated>& disks,
                           bool dry_run);
// {"dry_run":B,"disks":[{"path","uuid","from","to","backup","changed",
// "error"}]}
std::string MigratedJson(const std::vector<DiskMigrated>& disks, bool dry_run);

}  // namespace bim::daemon
