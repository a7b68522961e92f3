// What `bim history` and `bim prune` print. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pkg/base/status.h"
#include "pkg/store/history.h"

namespace bim::daemon {

// Of one disk; empty with a status that is not OK.
struct DiskHistory {
  std::string path;
  std::string uuid;
  store::History history;
  base::Status status;
};

// An entry and the disk that it is of.
struct HistoryRow {
  std::string path;
  store::HistoryEntry entry;
};
// Of all disks, by time, the newest last; those of `image` only unless that is
// empty, and of them the last `limit` unless that is 0.
std::vector<HistoryRow> SelectHistory(const std::vector<DiskHistory>& disks,
                                      const std::string& image, uint64_t limit);

std::string RenderHistory(const std::vector<HistoryRow>& rows);
// {"entries":[{"time","disk","event","name","uuid","message","manager_id",
// "version","epoch"}],"disks":[{"path","uuid","skipped","error"}]}
std::string HistoryJson(const std::vector<DiskHistory>& disks,
                        const std::vector<HistoryRow>& rows);

struct DiskPruned {
  std::string path;
  std::string uuid;
  store::PrunedHistory pruned;
  base::Status status;
};
std::string RenderPruned(const std::vector<DiskPruned>& disks, bool dry_run);
// {"dry_run":B,"disks":[{"path","uuid","dropped","kept","error"}]}
std::string PrunedJson(const std::vector<DiskPruned>& disks, bool dry_run);

}  // namespace bim::daemon
