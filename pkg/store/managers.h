// The managers that a disk has known: .bim/managers/<manager id>.json, one file
// for each that owned the disk, or claims it. For people, and for tidying up:
// who owns the disk is said by its lock and by .bim/owner alone.
//
// All functions block. Thread-safety: from any thread; of two that write the
// record of one manager at once, the last one wins.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pkg/base/status.h"
#include "pkg/io/dir.h"
#include "pkg/store/disk.h"

namespace bim::store {

inline constexpr char kManagersDir[] = ".bim/managers";
// More are not kept.
inline constexpr size_t kMaxManagers = 64;

enum class ManagerRole { kOwner, kCandidate };
// "owner", "candidate".
std::string_view ManagerRoleName(ManagerRole role);

struct ManagerRecord {
  OwnerRecord owner;  // as of the last time that it took, or claimed, the disk
  ManagerRole role = ManagerRole::kOwner;
};
std::string EncodeManager(const ManagerRecord& record);
// DATA_LOSS when it cannot be read.
base::Result<ManagerRecord> DecodeManager(std::string_view text);

// Writes, or replaces, the record of the manager that it names; durable. When
// there are too many then, dead ones go, the oldest first; where none is known
// to be dead, damaged ones and those whose life cannot be seen from here. The
// owner's (.bim/owner) and the new one stay.
// INVALID_ARGUMENT: its id cannot be a file's name.
base::Status WriteManager(const io::Dir& root, const ManagerRecord& record);

// The same, of this process, as a candidate for the disk from now on.
base::Status WriteCandidate(const io::Dir& root, const Disk::Owner& self);

// A record as it was found.
struct FoundManager {
  std::string manager_id;               // by the name of the file
  std::optional<ManagerRecord> record;  // none: damaged
  std::string error;                    // then, why
};
// By manager id; empty when there are none. Files with names that no manager
// gives are left out.
base::Result<std::vector<FoundManager>> ListManagers(const io::Dir& root);

// Fine when there is none. INVALID_ARGUMENT: no manager's id.
base::Status RemoveManager(const io::Dir& root, const std::string& manager_id);

}  // namespace bim::store
