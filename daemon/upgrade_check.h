// `bim upgrade check`: whether this program can take over the disks of a node,
// told before anything is touched.
//
// LookAtDisk blocks and reads only; the rest is pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "daemon/exit_code.h"
#include "daemon/load_config.h"
#include "pkg/base/status.h"
#include "pkg/manager/disk_list.h"
#include "pkg/meta/version.h"
#include "pkg/store/disk.h"
#include "pkg/store/handover.h"
#include "pkg/store/publish.h"

namespace bim::daemon {

// Less than this is too little for records and manifests.
inline constexpr uint64_t kMinMetadataBytes = 16 << 20;

// What lies on a disk; each part as it could be read.
struct DiskFacts {
  std::string path;
  std::string uuid;
  // The directory and its identity; the rest counts only when OK.
  base::Status opened;
  bool read_only = false;
  uint64_t available_bytes = 0;
  // NOT_FOUND: nobody ever owned it.
  base::Result<store::DiskFormat> format = base::NotFoundError("");
  base::Result<store::OwnerRecord> owner = base::NotFoundError("");
  base::Result<bool> owned = false;  // a process holds the lock
  base::Result<std::optional<store::HandoverRecord>> handover =
      std::optional<store::HandoverRecord>();
  size_t wanted = 0;    // desired records that can be read
  size_t removing = 0;  // of them those of a removal that did not end
  std::vector<std::string> unreadable;  // why, with the file's name
  base::Result<store::Unfinished> unfinished = store::Unfinished();
};
DiskFacts LookAtDisk(const manager::ListedDisk& disk);

// Who would take over.
struct Candidate {
  std::string manager_id;  // empty: not known yet
  meta::VersionRange api{meta::kApiMinVersion, meta::kApiVersion};
};

enum class Level { kOk, kWarning, kStop };
// "ok", "warning", "stop".
std::string_view LevelName(Level level);

struct Finding {
  std::string disk;  // path; empty: the node
  // "configuration", "disks", "disk", "format", "owner", "api", "handover",
  // "records", "unfinished" or "space".
  std::string check;
  Level level = Level::kOk;
  std::string what;
  std::string remedy;  // what to do; empty: nothing
};
std::vector<Finding> JudgeDisk(const DiskFacts& facts,
                               const Candidate& candidate);
// Of the configuration as the new program reads it.
std::vector<Finding> JudgeConfig(const base::Result<EffectiveConfig>& loaded);

// The gravest one; kOk for none.
Level WorstOf(const std::vector<Finding>& findings);
UpgradeExitCode ExitCodeOf(Level level);

// One line a finding.
std::string RenderFindings(const std::vector<Finding>& findings);
// {"result","version","api_version","api_min_version","disk_format_version",
// "disk_format_min_version","findings":[{"disk","check","level","what",
// "remedy"}]}
std::string FindingsJson(const std::vector<Finding>& findings);

}  // namespace bim::daemon
