// Which managers a disk has known, what they are to it now, and which of their
// records may go: `bim manager list` and `bim manager cleanup`.
//
// Pure, but that the processes of this host are looked at (store::IsAlive).
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pkg/base/status.h"
#include "pkg/store/disk.h"
#include "pkg/store/managers.h"

namespace bim::daemon {

// What a manager is to a disk.
enum class Standing {
  kOwner,      // now
  kLastOwner,  // in the owner record, but nobody holds the disk's lock
  kWasOwner,   // before that
  kCandidate,
  kDamaged  // its record cannot be read
};
// "owner", "last owner", "was owner", "candidate", "damaged".
std::string_view StandingName(Standing standing);

enum class Life { kAlive, kDead, kUnknown };
// "alive", "dead", "unknown".
std::string_view LifeName(Life life);

struct ManagerRow {
  std::string manager_id;
  Standing standing = Standing::kDamaged;
  Life life = Life::kUnknown;
  std::optional<store::OwnerRecord> record;  // none: damaged
  std::string error;                         // then, why
};
// `owner`: the owner record, if there ever was one; `owned`: a process holds
// the lock. The owner, or last owner, first, then the newest.
std::vector<ManagerRow> JudgeManagers(
    const std::optional<store::OwnerRecord>& owner, bool owned,
    const std::vector<store::FoundManager>& found);

// Whether a record may be removed, and why (not).
struct CleanupStep {
  bool remove = false;
  std::string why;
};
CleanupStep PlanCleanup(const ManagerRow& row, bool force);

// Of one disk; no rows with a status that is not OK.
struct DiskManagers {
  std::string path;
  std::string uuid;
  bool owned = false;
  std::vector<ManagerRow> managers;
  base::Status status;
};
std::string RenderManagers(const std::vector<DiskManagers>& disks);
// {"disks":[{"path","uuid","owned","managers":[{"manager_id","role","life",
// "version","api_version","api_min_version","epoch","pid","pid_namespace",
// "endpoint","since","error"}],"error"}]}
std::string ManagersJson(const std::vector<DiskManagers>& disks);

struct CleanedManager {
  ManagerRow row;
  CleanupStep step;
};
struct DiskCleaned {
  std::string path;
  std::string uuid;
  std::vector<CleanedManager> managers;
  base::Status status;
};
std::string RenderCleaned(const std::vector<DiskCleaned>& disks, bool dry_run);
// {"dry_run":B,"disks":[{"path","uuid","removed":[{"manager_id","role","life",
// "why"}],"kept":[...],"error"}]}
std::string CleanedJson(const std::vector<DiskCleaned>& disks, bool dry_run);

}  // namespace bim::daemon
